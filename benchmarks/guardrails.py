"""Guardrails: what they find and what they miss on labelled attacks and marked personal data, how long a check takes, and ten thousand round trips.

    python benchmarks/guardrails.py --data DATA --classifier attacks --names names [--quick]

DATA holds folders ``attacks`` and ``pii`` with ``test.jsonl`` (and, if they are there, folders of ordinary texts, on which every find is a false
one). ``--classifier`` and ``--names`` are models of the store, tuned on the train splits with ``examples/gateway/attacks.yaml`` and ``names.yaml``;
left out, there are only rules and forms. The round trips need no data. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from _planted import texts as planted_texts

from luthier.data import pii
from luthier.gateway.access.caller import Caller
from luthier.gateway.exchange import Exchange
from luthier.gateway.guard.answer import Answer
from luthier.gateway.guard.layer import open_guard
from luthier.gateway.guard.placeholders import Placeholders
from luthier.gateway.guard.rules import Guardrail, Rule
from luthier.gateway.guard.run import Guard
from luthier.gateway.guardrails._contract import Context, Finding

ATTACKS = {"injection": "prompt_injection", "jailbreak": "jailbreak"}
COVERED = {
    "EMAIL_ADDRESS": "EMAIL",
    "PHONE_NUMBER": "PHONE",
    "CREDIT_CARD": "CARD",
    "IBAN_CODE": "IBAN",
    "US_SSN": "SSN",
    "PERSON": "NAME",
}
ORDINARY = {
    "alpaca_en_12k": "messages",
    "alpaca_zh_6k": "messages",
    "squad": "text",
    "cmrc_zh": "text",
    "agnews": "text",
}
FILES = {"squad": "corpus.jsonl", "cmrc_zh": "corpus.jsonl"}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with attacks/test.jsonl and pii/test.jsonl")
    parser.add_argument("--classifier", help="a model of the store that knows attacks")
    parser.add_argument("--names", help="a tagger of the store that knows names")
    parser.add_argument("--texts", type=int, default=10_000, help="round trips")
    parser.add_argument("--quick", action="store_true", help="at most 150 ordinary texts of each kind")
    asked = parser.parse_args()
    figures: dict[str, Any] = {}
    quality: dict[str, Any] = {}
    if asked.data is not None:
        for name in [None, *([asked.classifier] if asked.classifier else [])]:
            said = attacks(asked.data, name, most=150 if asked.quick else 500)
            quality["attacks_classifier" if name else "attacks_rules"] = said.pop("quality")
            figures["attacks_classifier" if name else "attacks_rules"] = said
        for name in [None, *([asked.names] if asked.names else [])]:
            said = personal(asked.data, name)
            quality["pii_names" if name else "pii_forms"] = said.pop("quality")
            figures["pii_names" if name else "pii_forms"] = said
    quality["round_trip"] = round_trips(asked.texts)
    figures["streaming"] = streaming(200 if asked.quick else 1000)
    print(json.dumps({"benchmark": "guardrails", "ratios": {}, "figures": figures, "quality": quality}))


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON Lines file."""
    for line in path.read_text("utf-8").split("\n"):
        if line.strip():
            yield json.loads(line)


def attacks(data: Path, classifier: str | None, *, most: int) -> dict[str, Any]:
    """Injections and jailbreaks of the test split: which guardrail finds which, and what they find in ordinary texts."""
    options = {"classifier": classifier} if classifier else {}
    guard = open_guard([Rule(name=name, **options) for name in ATTACKS.values()])
    found: dict[str, Counter[str]] = defaultdict(Counter)
    times: dict[str, list[float]] = defaultdict(list)
    for row in rows(data / "attacks" / "test.jsonl"):
        hits = [rail.name for rail in guard.rails if look(rail, row["text"], times[rail.name])]
        found[row["label"]].update([*hits, "any"] if hits else [])
        found[row["label"]]["rows"] += 1
    ordinary = {name: list(ordinary_texts(data, name, most)) for name in ORDINARY}
    false = {
        name: sum(any(look(rail, text, []) for rail in guard.rails) for text in texts) / len(texts)
        for name, texts in ordinary.items() if texts
    }  # fmt: skip
    guard.close()
    quality: dict[str, Any] = {}
    harmless = found["benign"]["any"] + found["harmful_request"]["any"]
    for label, name in ATTACKS.items():
        quality[label] = {
            "recall": ratio(found[label][name], found[label]["rows"]),
            "recall_of_both_guardrails": ratio(found[label]["any"], found[label]["rows"]),
        }
    right = sum(found[label]["any"] for label in ATTACKS)
    quality["attack"] = {
        "precision": ratio(right, right + harmless),
        "recall": ratio(right, sum(found[label]["rows"] for label in ATTACKS)),
        "false_positives_benign": ratio(found["benign"]["any"], found["benign"]["rows"]),
        "false_positives_harmful_request": ratio(found["harmful_request"]["any"], found["harmful_request"]["rows"]),
        "false_positives_elsewhere": {name: round(share, 4) for name, share in false.items()},
    }
    title = f"attacks, classifier {classifier}" if classifier else "attacks, rules only"
    print(f"== {title}\n{json.dumps(quality, indent=1)}", flush=True)
    return {"quality": quality, "check": {name: milliseconds(taken) for name, taken in times.items()}}


def ordinary_texts(data: Path, name: str, most: int) -> Iterator[str]:
    """Texts in which there is nothing to find, as far as somebody looked; none when the set is not there."""
    path = data / name / FILES.get(name, "test.jsonl")
    if not path.exists():
        return
    for row in list(rows(path))[:most]:
        yield (
            next(each["content"] for each in row["messages"] if each["role"] == "user")
            if ORDINARY[name] == "messages"
            else row["text"]
        )


def personal(data: Path, names: str | None) -> dict[str, Any]:
    """Marked spans of the test split, kind by kind: found when the finding covers all of it; a find is right when it touches a marked span of its kind."""
    guard = open_guard([Rule(name="pii", **({"names": names} if names else {}))])
    rail, taken = guard.rails[0], []
    wanted, covered, exact, finds, right = Counter(), Counter(), Counter(), Counter(), Counter()  # type: ignore[var-annotated]
    others: Counter[str] = Counter()
    for row in rows(data / "pii" / "test.jsonl"):
        found = look(rail, row["text"], taken)
        marked = [
            (COVERED[each["type"]], each["start"], each["end"]) for each in row["entities"] if each["type"] in COVERED
        ]
        others.update(each["type"] for each in row["entities"] if each["type"] not in COVERED)
        for kind, start, end in marked:
            wanted[kind] += 1
            same = [each for each in found if each.kind == kind]
            covered[kind] += any(each.start <= start and end <= each.end for each in same)
            exact[kind] += any((each.start, each.end) == (start, end) for each in same)
        for each in found:
            finds[each.kind] += 1
            right[each.kind] += any(
                kind == each.kind and start < each.end and each.start < end for kind, start, end in marked
            )
    guard.close()
    quality = {
        kind: {
            "marked": wanted[kind], "recall": ratio(covered[kind], wanted[kind]), "exact": ratio(exact[kind], wanted[kind]),
            "found": finds[kind], "precision": ratio(right[kind], finds[kind]),
        }
        for kind in sorted({*wanted, *finds} - (set() if names else {"NAME"}))
    }  # fmt: skip
    print(
        f"== pii{f', names {names}' if names else ', forms only'}\n{json.dumps(quality, indent=1)}\nnot covered: {dict(others)}",
        flush=True,
    )
    return {"quality": quality, "check": milliseconds(taken), "not_covered": dict(others)}


def look(rail: Guardrail, text: str, taken: list[float]) -> list[Finding]:
    """What a guardrail finds in a text; the seconds go into ``taken``."""
    start = time.perf_counter()
    found = rail.check(text, Context("input"))
    taken.append(time.perf_counter() - start)
    return found


def round_trips(count: int) -> dict[str, Any]:
    """Texts with planted data: how many come back exactly, and how many planted values stay in what the model would see."""
    exact = left = values = 0
    taken: list[float] = []
    kinds: Counter[str] = Counter()
    for made in planted_texts(count):
        start = time.perf_counter()
        places = Placeholders(pii.KINDS, [made.text])
        hidden = places.mask(made.text, [Finding(span.kind, span.start, span.end) for span in pii.find(made.text)])
        restored = places.restore(hidden)
        taken.append(time.perf_counter() - start)
        exact += restored == made.text
        values += len(made.values)
        kinds.update(kind for kind, _ in made.values)
        left += sum(value in hidden for _, value in made.values)
    said = {
        "texts": count,
        "exact": exact,
        "values": values,
        "left": left,
        "by_kind": dict(kinds),
        **milliseconds(taken),
    }
    print(f"== round trip\n{json.dumps(said)}", flush=True)
    return said


def streaming(answers: int) -> dict[str, Any]:
    """What guardrails cost for each piece of a streamed answer (five characters), on one core."""
    rules = [Rule(name="pii", on="output"), Rule(name="canary"), Rule(name="limits", on="output", action="cut")]
    texts = [made.text for made in planted_texts(answers, seed=5)]
    out: dict[str, Any] = {}
    for chosen in ([rules[0]], [rules[1]], [rules[2]], rules):
        guard = open_guard(chosen)
        start, pieces = time.process_time(), 0
        for text in texts:
            cut = [text[at : at + 5] for at in range(0, len(text), 5)]
            asyncio.run(answered(guard, cut))
            pieces += len(cut)
        out["+".join(rule.name for rule in chosen)] = {
            "us_per_piece": round((time.process_time() - start) / pieces * 1e6, 1)
        }
        guard.close()
    print(f"== streaming\n{json.dumps(out)}", flush=True)
    return out


async def answered(guard: Guard, pieces: Sequence[str]) -> str:
    """An answer in pieces, through the stages."""
    exchange = Exchange("chat", "m", Caller())
    answer = Answer(guard, guard.rails, exchange, Context("output", role="assistant"), Placeholders(()), as_json=False)
    out = [await answer.feed(piece) for piece in pieces if answer.verdict is None]
    return "".join([*out, await answer.feed("", final=True) if answer.verdict is None else ""])


def ratio(part: int, whole: int) -> float | None:
    """Four digits; None of nothing."""
    return round(part / whole, 4) if whole else None


def milliseconds(taken: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile."""
    ordered = sorted(taken)
    p50, p99 = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3 for share in (0.5, 0.99))
    return {"p50_ms": round(p50, 3), "p99_ms": round(p99, 3)}


if __name__ == "__main__":
    main()
