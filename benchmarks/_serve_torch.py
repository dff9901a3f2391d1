"""The torch engine while several callers ask at once, beside ``transformers`` answering the same prompts one by one.

SmolLM2-135M in bf16, the same weights, prompts, threads and greedy decoding, in turn and in one process. Wall time and processor time are both given:
on a busy machine the ratio of processor times is the steadier one. Then how much earlier an answer begins when its system prompt of 1,500 tokens was
read before, and what guessing ahead by look-up is worth to a single caller.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MODEL = "smollm2-135m"
CALLERS = 8
BARS = {"batching": 3.0, "first_token_saved": 0.8}
SUBJECTS = (
    "a lighthouse",
    "the first bread",
    "a clockmaker",
    "rain in May",
    "two rivers",
    "an old map",
    "night trains",
    "salt",
)
RULES = "The desk answers questions about parcels, refunds, lessons and passwords, briefly and kindly. "
LETTER = (
    "The parcel with the violin was sent on Monday from Leipzig and should have arrived on Thursday. The courier wrote that nobody was "
    "at home, but the customer waited all day. She asks for a refund of the deposit of 120 euros, or a new delivery on Saturday."
)


def run(quick: bool = False, home: Path | None = None, threads: int | None = None) -> dict[str, Any]:
    """``{"ratios", "quality", ...}``; ``home`` is the store that has the model (the user's own when left out)."""
    import torch

    from luthier.engines._open import open_engine
    from luthier.models.pull import pull
    from luthier.store.database import open_store

    store = open_store(home)
    pull(MODEL, store=store)
    options: dict[str, Any] = {
        "dtype": "bf16",
        "device": "cpu",
        "lookup": False,
        **({"threads": threads} if threads else {}),
    }
    tokens, rounds = (32, 2) if quick else (64, 5)
    found: dict[str, Any] = {"ratios": {}, "quality": {"bars": BARS}}
    engine: Any = open_engine(store, MODEL, "torch", options)
    found["threads"] = torch.get_num_threads()
    found["batching"], equal = _batching(engine, _peer(store), tokens, rounds)
    found["ratios"] |= {f"torch_batching_{name}": found["batching"][name]["ratio"] for name in ("processor", "wall")}
    found["quality"]["torch_equal_greedy_bf16"] = equal
    found["prefix"] = _prefix(engine, 2 if quick else 5)
    found["ratios"]["torch_first_token_saved"] = found["prefix"]["saved"]
    found["lookup"] = {}
    guessing: Any = open_engine(store, MODEL, "torch", options | {"lookup": True})
    for name, texts in _tasks(quick).items():
        found["lookup"][name] = _lookup(engine, guessing, texts, tokens)
        found["ratios"][f"torch_lookup_{name}"] = found["lookup"][name]["ratio"]
    for each in (engine, guessing):
        each.close()
    found["quality"]["torch_equal_greedy_fp32"] = _equal_in_fp32(store, options, 12 if quick else 32)
    return found


def _tasks(quick: bool) -> dict[str, list[str]]:
    copies = [f"Repeat this text word for word:\n\n{LETTER}", f"Correct the mistakes and write it again:\n\n{LETTER}"]
    chat = ["What is a violin?", "How do I cook rice?", "Write a short poem about rain.", "Name three rivers."]
    return {"copying": copies, "chat": chat[:2] if quick else chat}


def _questions(number: int) -> list[Any]:
    from luthier.core.message import user

    return [
        user(f"Story {number}: tell me about {subject}, {n + 3} sentences please.")
        for n, subject in enumerate(SUBJECTS)
    ]


def _peer(store: Any, dtype: str = "bfloat16") -> Callable[[Sequence[int], int], list[int]]:
    """``transformers`` own generation: prompt ids and a limit -> new ids."""
    import torch
    from transformers import AutoModelForCausalLM

    from luthier.store.artifacts import path_of
    from luthier.store.models import find

    folder = str(path_of(store, find(store, MODEL).digest))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="sdpa").eval()

    def answer(prompt: Sequence[int], limit: int) -> list[int]:
        ids = torch.tensor([list(prompt)])
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, min_new_tokens=limit, do_sample=False
            )
        new: list[int] = out[0, ids.shape[1] :].tolist()
        return new

    return answer


def _batching(engine: Any, peer: Any, tokens: int, rounds: int) -> tuple[dict[str, Any], str]:
    """Tokens a second of eight callers, and of the peer; medians over rounds of their ratios."""
    from luthier.core.engine import Sampling

    # neither side may stop early: both are asked for as many tokens, Luthier by forbidding the tokens that end a turn
    ends = tuple((token, -100.0) for token in sorted(engine._renderer.stop_ids))
    sampling = Sampling(max_new_tokens=tokens, logit_bias=ends)
    warm = _questions(0)
    _together(
        engine, warm, Sampling(max_new_tokens=8, logit_bias=ends)
    )  # both sides: the first tokens of a process are slow
    for each in warm[:4]:
        peer(engine._renderer.prompt_ids(each), 8)
    ratios: dict[str, list[float]] = {"processor": [], "wall": []}
    speeds: dict[str, dict[str, list[float]]] = {name: {"luthier": [], "transformers": []} for name in ratios}
    equal = total = 0
    for number in range(1, rounds + 1):
        asked = _questions(number)
        prompts = [engine._renderer.prompt_ids(each) for each in asked]

        def ours(asked: list[Any] = asked) -> list[list[int]]:
            return [list(each.token_ids) for each in _together(engine, asked, sampling)]

        def theirs(prompts: list[list[int]] = prompts) -> list[list[int]]:
            return [peer(prompt, tokens) for prompt in prompts]

        sides = {"luthier": ours, "transformers": theirs}
        made: dict[str, list[list[int]]] = {}
        for name in list(sides) if number % 2 else list(sides)[::-1]:
            start = time.process_time(), time.perf_counter()
            made[name] = sides[name]()
            took = {"processor": time.process_time() - start[0], "wall": time.perf_counter() - start[1]}
            for kind, seconds in took.items():
                speeds[kind][name].append(sum(map(len, made[name])) / seconds)
        for kind, values in ratios.items():
            values.append(speeds[kind]["luthier"][-1] / speeds[kind]["transformers"][-1])
        equal += sum(a == b for a, b in zip(made["luthier"], made["transformers"], strict=True))
        total += len(asked)
    out = {
        kind: {
            "ratio": round(statistics.median(ratios[kind]), 2),
            **{f"{name}_tokens_per_s": round(statistics.median(values), 1) for name, values in speeds[kind].items()},
        }
        for kind in ratios
    }
    return out, f"{equal} of {total} answers, {tokens} tokens each"


def _together(engine: Any, asked: Sequence[Any], sampling: Any) -> list[Any]:
    """Each prompt streamed in a thread of its own."""
    out: list[Any] = [None] * len(asked)

    def ask(place: int) -> None:
        for delta in engine.stream(asked[place], sampling):
            out[place] = delta.generation or out[place]

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return out


def _prefix(engine: Any, rounds: int) -> dict[str, Any]:
    """Seconds to the first token after a system prompt of 1,500 tokens, unknown and known."""
    from luthier.core.engine import Sampling
    from luthier.core.message import Message

    rules = RULES
    while len(engine._renderer.prompt_ids((Message("system", rules), Message("user", "x")))) < 1500:
        rules += RULES
    times: dict[str, list[float]] = {"unknown": [], "known": []}
    cached = 0
    for number in range(rounds):
        system = Message("system", f"Version {number}. {rules}")
        for name, values in times.items():
            question = Message("user", f"{name}: where is parcel {number}?")
            stream = engine.stream((system, question), Sampling(max_new_tokens=1))
            last = list(stream)[-1].generation
            values.append(last.first_token_s)
            cached = last.cached_tokens if name == "known" else cached
    unknown, known = (statistics.median(times[name]) for name in ("unknown", "known"))
    return {
        "unknown_s": round(unknown, 4),
        "known_s": round(known, 4),
        "saved": round(1 - known / unknown, 3),
        "cached_tokens": cached,
    }


def _lookup(engine: Any, guessing: Any, texts: Sequence[str], tokens: int) -> dict[str, Any]:
    """Tokens a second of processor time of one caller, without and with guesses."""
    from luthier.core.engine import Sampling
    from luthier.core.message import user

    speed, said = {}, {}
    for name, each in (("plain", engine), ("guessing", guessing)):
        each.generate([user("Hello.")], Sampling(max_new_tokens=2))
        start = time.process_time()
        answers = [each.generate([user(text)], Sampling(max_new_tokens=tokens))[0] for text in texts]
        speed[name] = sum(answer.completion_tokens for answer in answers) / (time.process_time() - start)
        said[name] = [answer.text for answer in answers]
    equal = sum(a == b for a, b in zip(said["plain"], said["guessing"], strict=True))
    return {
        "ratio": round(speed["guessing"] / speed["plain"], 2),
        **{f"{name}_tokens_per_s": round(value, 1) for name, value in speed.items()},
        "equal_texts": f"{equal} of {len(texts)}",
    }


def _equal_in_fp32(store: Any, options: dict[str, Any], tokens: int) -> str:
    """Greedy answers of eight callers at once against ``transformers`` alone, where rounding does not decide."""
    from luthier.core.engine import Sampling
    from luthier.engines._open import open_engine

    engine: Any = open_engine(store, MODEL, "torch", options | {"dtype": "fp32"})
    peer, asked = _peer(store, "float32"), _questions(0)
    ends = tuple((token, -100.0) for token in sorted(engine._renderer.stop_ids))
    found = _together(engine, asked, Sampling(max_new_tokens=tokens, logit_bias=ends))
    equal = sum(
        list(answer.token_ids) == peer(engine._renderer.prompt_ids(prompt), tokens)
        for answer, prompt in zip(found, asked, strict=True)
    )
    engine.close()
    return f"{equal} of {len(asked)} answers, {tokens} tokens each"
