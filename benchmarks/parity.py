"""Does llama.cpp answer as torch does? Token ids everywhere, and the first 16 greedy tokens of 100 prompts.

    python benchmarks/parity.py [--quick] [--adapter NAME]

Half of the prompts are tickets, half questions about the handbook (examples/support), each in a conversation with an instruction.
Token ids are compared between training, evaluation, torch serving, llama.cpp serving, and llama.cpp's own tokenizer on the rendered
text. Greedy answers are compared with torch in fp32, with and without a LoRA adapter: a stored one, or a random one on all linear
layers (made for this run and removed after it). The last line is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from luthier.core.engine import Engine, Generation, Sampling, ScoreRequest
from luthier.core.message import Conversation, Message
from luthier.core.model import ModelRecord
from luthier.core.task import PromptTemplate
from luthier.store.database import Store, open_store

SUPPORT = Path(__file__).parent.parent / "examples" / "support"
TOKENS = 16
BAR = 0.90
RANDOM = "parity-random-lora"
WAYS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "torch fp32": ("torch", {"dtype": "fp32", "device": "cpu"}),
    "torch bf16": ("torch", {"dtype": "bf16", "device": "cpu"}),
    "llama.cpp F16": ("llamacpp", {"type": "F16"}),
    "llama.cpp F16, f32 cache": ("llamacpp", {"type": "F16", "cache_type": "f32"}),
    "llama.cpp Q8_0": ("llamacpp", {"type": "Q8_0"}),
    "llama.cpp Q4_1": ("llamacpp", {"type": "Q4_1"}),
    "llama.cpp Q4_0": ("llamacpp", {"type": "Q4_0"}),
}
REFERENCE, JUDGED = "torch fp32", "llama.cpp F16"


def read_prompts(count: int) -> list[tuple[Conversation, str]]:
    """(prompt, an answer for the training side), tickets and questions in turn."""

    def rows(name: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (SUPPORT / name).read_text(encoding="utf-8").splitlines() if line.strip()]

    tickets, questions = rows("tickets.jsonl"), rows("questions.jsonl")
    reply = PromptTemplate("You work for a shop that rents instruments. Reply to the customer in two sentences.")
    answer = PromptTemplate("Answer the question about the shop's rules as well as you can.")
    every = max(1, len(tickets) // math.ceil(count / 2))
    out: list[tuple[Conversation, str]] = []
    for number in range(math.ceil(count / 2)):
        ticket, question = tickets[number * every % len(tickets)], questions[number % len(questions)]
        out.append((reply.messages(ticket["text"]), f"This is about {ticket['label']}."))
        out.append((answer.messages(question["question"]), question["answer"]))
    return out[:count]


def random_adapter(store: Store, base: str) -> ModelRecord:
    """A LoRA adapter of rank 8 on all linear layers, large enough to change most answers, small enough to keep them text."""
    import torch
    from peft import LoraConfig, get_peft_model

    from luthier.models.attach import save_trained
    from luthier.models.load import load_model
    from luthier.store.artifacts import put, staged
    from luthier.store.models import register

    torch.manual_seed(0)
    model = load_model(store, base, dtype="fp32", device="cpu")
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    model.module = get_peft_model(model.module, config, autocast_adapter_dtype=False)
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.02)
    with staged(store) as folder:
        manifest = save_trained(model, folder, {"saves": "adapter", "method": {"name": "lora", "config": {}}})
        digest, size = put(store, folder)
    meta = {"template_digest": manifest["template_digest"]}
    return register(store, ModelRecord(RANDOM, "adapter", "decoder", digest, size, base=base, meta=meta), replace=True)


def remove_random(store: Store) -> None:
    """The random adapter and what was exported of it."""
    from luthier.store.models import list_models, remove

    for record in [r for r in list_models(store) if r.meta.get("target") == RANDOM] + [
        r for r in list_models(store, "adapter") if r.name == RANDOM
    ]:
        remove(store, record.name)


def same_ids(store: Store, base: str, prompts: Sequence[tuple[Conversation, str]]) -> dict[str, int]:
    """How many prompts get the same ids on each path as the renderer gives."""
    from luthier.engines._open import open_engine
    from luthier.models.load import load_renderer
    from luthier.store.artifacts import path_of
    from luthier.store.models import find

    renderer = load_renderer(path_of(store, find(store, base).digest))
    torch_engine = open_engine(store, base, "torch", {"device": "cpu"})
    llama = open_engine(store, base, "llamacpp", {"parallel": 1})
    one = Sampling(max_new_tokens=1)
    conversations = [prompt for prompt, _ in prompts]
    served = {
        "torch serving": torch_engine.generate(conversations, one),
        "llama.cpp serving": llama.generate(conversations, one),
    }
    equal = dict.fromkeys(("training", "scoring", *served, "llama.cpp tokenizer"), 0)
    for number, (prompt, answer) in enumerate(prompts):
        ids = renderer.prompt_ids(prompt)
        trained = renderer.training_ids((*prompt, Message("assistant", answer)))
        begin = trained.mask.index(True)
        equal["training"] += trained.ids[:begin] == ids
        said = renderer.continuation_ids(answer, ends_turn=True)
        equal["scoring"] += trained.ids[begin : begin + len(said)] == said
        for path, answers in served.items():
            equal[path] += list(answers[number].prompt_token_ids) == ids
        body = {"content": renderer.text(prompt), "add_special": False, "parse_special": True}
        equal["llama.cpp tokenizer"] += llama._server.post("/tokenize", body)["tokens"] == ids  # type: ignore[attr-defined]
    torch_engine.close()
    llama.close()
    return equal


def answer_all(engine: Engine, prompts: Sequence[tuple[Conversation, str]]) -> tuple[list[Generation], float]:
    """Greedy answers and the seconds they took."""
    engine.generate([prompts[0][0]], Sampling(max_new_tokens=1))  # loads and warms up
    start = time.perf_counter()
    answers = engine.generate([prompt for prompt, _ in prompts], Sampling(max_new_tokens=TOKENS))
    return answers, time.perf_counter() - start


def shared(left: Generation, right: Generation) -> float:
    """The share of the first ``TOKENS`` tokens before the answers part."""
    if left.token_ids == right.token_ids:
        return 1.0
    pairs = zip(left.token_ids, right.token_ids, strict=False)
    return next(
        (i for i, (a, b) in enumerate(pairs) if a != b), min(map(len, (left.token_ids, right.token_ids)))
    ) / max(len(left.token_ids), len(right.token_ids))


def measure(store: Store, name: str, prompts: Sequence[tuple[Conversation, str]]) -> tuple[dict[str, Any], list[Any]]:
    """Agreement of every way with the reference; also the reference's answers."""
    from luthier.engines._open import open_engine

    out: dict[str, Any] = {}
    reference: list[Generation] = []
    scores: Any = None
    labels = ("billing", "delivery", "the lesson was cancelled")
    asked = [ScoreRequest(prompt, labels) for prompt, _ in prompts[:10]]
    for way, (engine_name, options) in WAYS.items():
        engine = open_engine(store, name, engine_name, options)
        answers, seconds = answer_all(engine, prompts)
        found = engine.score(asked)
        engine.close()
        if way == REFERENCE:
            reference, scores = answers, found
        same = sum(a.token_ids == b.token_ids for a, b in zip(answers, reference, strict=True))
        distances = [
            abs(a.logprob - b.logprob) / a.tokens
            for mine, theirs in zip(found, scores, strict=True)
            for a, b in zip(mine, theirs, strict=True)
        ]
        out[way] = {
            "agree": same / len(prompts),
            "prefix": sum(map(shared, answers, reference)) / len(prompts),
            "score_error": sum(distances) / len(distances),
            "tokens_per_s": sum(a.completion_tokens for a in answers) / seconds,
        }
        print(
            f"  {way:26} {same:4}/{len(prompts)} = {same / len(prompts):6.1%}   {out[way]['prefix']:6.1%}"
            f"   {out[way]['score_error']:8.5f}   {out[way]['tokens_per_s']:7.1f}",
            flush=True,
        )
    return out, reference


def main() -> int:
    """Run, print, and say with the exit code whether the bar was met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="24 prompts instead of 100")
    parser.add_argument("--adapter", help="a stored LoRA adapter; its base is used (default: a random one)")
    parser.add_argument("--base", default="smollm2-135m", help="the base when no adapter is given")
    options = parser.parse_args()

    from luthier.models.pull import pull
    from luthier.store.models import find

    store = open_store()
    base = str(find(store, options.adapter).base) if options.adapter else pull(options.base, store=store).name
    adapter = options.adapter or random_adapter(store, base).name
    prompts = read_prompts(24 if options.quick else 100)
    try:
        ids = same_ids(store, base, prompts)
        print(f"token ids equal to the renderer's, of {len(prompts)} prompts")
        for path, count in ids.items():
            print(f"  {path:26} {count:4}/{len(prompts)}")
        agreement, answers = {}, {}
        for title, name in (("base", base), ("lora", adapter)):
            print(f"\n{title} {name}: the first {TOKENS} greedy tokens against {REFERENCE}")
            print(f"  {'':26} {'all equal':>18}   {'prefix':>6}   {'|score|':>8}   {'token/s':>7}", flush=True)
            agreement[title], answers[title] = measure(store, name, prompts)
    finally:
        if not options.adapter:
            remove_random(store)
    changed = sum(a.token_ids != b.token_ids for a, b in zip(answers["base"], answers["lora"], strict=True))
    print(f"\nthe adapter changes {changed} of {len(prompts)} answers")
    worst = min(agreement[title][JUDGED]["agree"] for title in agreement)
    passed = worst >= BAR and all(count == len(prompts) for count in ids.values())
    print(
        f"bar: {JUDGED} agrees on at least {BAR:.0%} of the prompts, all token ids equal: {'met' if passed else 'MISSED'}"
    )
    print(
        json.dumps(
            {
                "benchmark": "parity",
                "ratios": {f"{title}: {JUDGED}": agreement[title][JUDGED]["agree"] for title in agreement},
                "figures": {"prompts": len(prompts), "tokens": TOKENS, "token_ids_equal": ids, "changed": changed},
                "quality": agreement,
            }
        )
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
