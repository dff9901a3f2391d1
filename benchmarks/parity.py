"""Does llama.cpp answer as torch does? Token ids everywhere, and the first 16 greedy tokens of 100 prompts.

    python benchmarks/parity.py [--quick] [--adapter NAME]

Half of the prompts are tickets, half questions about the handbook (examples/support), each in a conversation with an instruction. The
comparison is that of ``luthier check parity`` (luthier.evaluation.parity): token ids, stop tokens and loss mask between training, torch,
llama.cpp and llama.cpp's own tokenizer, then log-probabilities and greedy answers against torch in fp32. It is made with and without a
LoRA adapter: a stored one, or a random one on all linear layers (made for this run and removed after it). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from luthier.core.model import ModelRecord
from luthier.core.task import PromptTemplate
from luthier.evaluation.parity import Parity, check_parity
from luthier.evaluation.parity_compare import ANSWERS, EXACT, LOG_PROBS, TOP_1
from luthier.evaluation.parity_prompts import Case
from luthier.store.database import Store, open_store

SUPPORT = Path(__file__).parent.parent / "examples" / "support"
TOKENS = 16
BAR = 0.90
RANDOM = "parity-random-lora"
WAYS = ("torch:bf16", "llamacpp:F32", "llamacpp:F16", "llamacpp:Q8_0", "llamacpp:Q4_1", "llamacpp:Q4_0")
REFERENCE, JUDGED = "torch fp32", "llama.cpp F16"


def read_cases(count: int) -> list[Case]:
    """Tickets and questions in turn, each with an answer for the training side."""

    def rows(name: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (SUPPORT / name).read_text(encoding="utf-8").splitlines() if line.strip()]

    tickets, questions = rows("tickets.jsonl"), rows("questions.jsonl")
    reply = PromptTemplate("You work for a shop that rents instruments. Reply to the customer in two sentences.")
    answer = PromptTemplate("Answer the question about the shop's rules as well as you can.")
    every = max(1, len(tickets) // math.ceil(count / 2))
    out: list[Case] = []
    for number in range(math.ceil(count / 2)):
        ticket, question = tickets[number * every % len(tickets)], questions[number % len(questions)]
        out.append(Case(f"ticket {number + 1}", reply.messages(ticket["text"]), f"This is about {ticket['label']}."))
        out.append(Case(f"question {number + 1}", answer.messages(question["question"]), question["answer"]))
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


def report(found: Parity) -> dict[str, dict[str, float]]:
    """Print the comparisons; for each way the share of equal answers and the differences of its log-probabilities."""
    out: dict[str, dict[str, float]] = {}
    for c in found.comparisons:
        worst = f"worst {c.worst:.2g} mean {c.mean:.2g}" if c.worst is not None else ""
        print(f"  {c.left + ' - ' + c.right:44} {c.what:20} {c.equal:4}/{c.of:<4} {c.verdict:8} {worst}", flush=True)
        if c.what == ANSWERS:
            out.setdefault(c.right, {})["agree"] = c.equal / c.of
        if c.what == LOG_PROBS and c.mean is not None and c.worst is not None:
            out.setdefault(c.right, {}).update(score_error=c.mean, worst_score_error=c.worst)
        if c.what == TOP_1:
            out.setdefault(c.right, {})["likeliest"] = c.equal / c.of
    return out


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
    agreement: dict[str, dict[str, dict[str, float]]] = {}
    base = str(find(store, options.adapter).base) if options.adapter else pull(options.base, store=store).name
    adapter = options.adapter or random_adapter(store, base).name
    cases = read_cases(24 if options.quick else 100)
    try:
        found = {}
        for title, name in (("base", base), ("lora", adapter)):
            print(
                f"\n{title} {name}: {len(cases)} prompts, the first {TOKENS} greedy tokens, against {REFERENCE}",
                flush=True,
            )
            found[title] = check_parity(
                name, against=WAYS, prompts=cases, tokens=TOKENS, scored=8 if options.quick else 24, store=store
            )
            agreement[title] = report(found[title])
    finally:
        if not options.adapter:
            remove_random(store)
    changed = sum(a != b for a, b in zip(found["base"].answers, found["lora"].answers, strict=True))
    print(f"\nthe adapter changes {changed} of {len(cases)} answers")
    exact = [c for one in found.values() for c in one.comparisons if c.what in EXACT]
    equal = all(c.verdict == "equal" for c in exact)
    worst = min(agreement[title][JUDGED]["agree"] for title in agreement)
    passed = worst >= BAR and equal
    print(
        f"bar: {JUDGED} agrees on at least {BAR:.0%} of the prompts; token ids, stop tokens and masks all equal: "
        f"{'met' if passed else 'MISSED'}"
    )
    ids = {f"{c.left} - {c.right}: {c.what}": c.equal for c in exact}
    print(
        json.dumps(
            {
                "benchmark": "parity",
                "ratios": {f"{title}: {JUDGED}": agreement[title][JUDGED]["agree"] for title in agreement},
                "figures": {"prompts": len(cases), "tokens": TOKENS, "equal": ids, "changed": changed},
                "quality": agreement,
            }
        )
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
