"""How often is an answer by meaning the wrong one? Streams of real questions through the gateway's own index, by threshold.

    python benchmarks/semantic_cache.py [--spider FOLDER] [--squad FOLDER] [--banking FILE.csv] [--model minilm-l6] [--quick]

A question comes, the nearest earlier one is looked for, and one that is not answered joins those that are kept. A hit is right when both questions
have the same gold answer:

- spider (text2sql/{test,validation}.jsonl: db_id, question, sql): questions to databases; right is the same SQL query on the same database. Another query
  that gives the same rows counts as wrong here, so the figures are upper bounds.
- squad ({test,validation}[_unanswerable].jsonl: context_id, question, answers): questions about paragraphs, among them SQuAD 2.0's, which were made by
  changing a word of another question so that it has no answer: as hard as it gets. A hit between two that have none is wrong.
- banking (BANKING77's test.csv: text, category): what customers of a bank ask; right is the same intent.

There is no peer. The last line is the result as JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

THRESHOLDS = (0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98)
Row = tuple[str, str, str]  # what must be equal besides, question, gold answer ("" has none)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def spider(folder: Path) -> list[Row]:
    rows = [row for split in ("test", "validation") for row in rows_of(folder / f"{split}.jsonl")]
    return [(row["db_id"], row["question"], " ".join(row["sql"].lower().split())) for row in rows]


def squad(folder: Path) -> list[Row]:
    names = [f"{split}{kind}.jsonl" for split in ("test", "validation") for kind in ("", "_unanswerable")]
    rows = [row for name in names for row in rows_of(folder / name)]
    plain = [re.sub(r"\W+", " ", row["answers"][0].lower()).strip() if row["answers"] else "" for row in rows]
    return [(row["context_id"], row["question"], answer) for row, answer in zip(rows, plain, strict=True)]


def banking(file: Path) -> list[Row]:
    with file.open(encoding="utf-8", newline="") as opened:
        return [("bank", row["text"], row["category"]) for row in csv.DictReader(opened)]


def partitions(rows: list[Row], *, words: bool) -> list[str]:
    """The gateway's own partition of each question."""
    from luthier.core.engine import EngineInfo, Sampling
    from luthier.core.message import Message
    from luthier.gateway.access.caller import Caller
    from luthier.gateway.cache.key import partition_of
    from luthier.gateway.exchange import Exchange
    from luthier.gateway.layers import Question
    from luthier.gateway.targets.served import Served

    class Named:
        info = EngineInfo("benchmark", "none", frozenset())

    exchange, served = Exchange("chat", "benchmark", Caller()), Served("benchmark", Named())  # type: ignore[arg-type]
    out = []
    for about, text, _ in rows:
        turns = (Message("system", about), Message("user", text))
        found = partition_of(Question(exchange, (turns,), Sampling(), served=served), words=words)
        assert found is not None
        out.append(found[0])
    return out


def stream(rows: list[Row], vectors: Any, where: list[str], threshold: float) -> dict[str, float]:
    """Shares of all questions: hits, wrong ones, and questions whose answer had been given before (repeats)."""
    from luthier.gateway.cache.semantic import SemanticIndex

    index = SemanticIndex(len(rows) + 1)
    asked: set[tuple[str, str]] = set()
    given: set[tuple[str, str]] = set()
    count = hits = wrong = repeats = 0
    for place, (about, text, answer) in enumerate(rows):
        if (about, text) in asked:  # the exact cache's
            continue
        asked.add((about, text))
        count += 1
        repeats += bool(answer) and (about, answer) in given
        near = next(index.near(where[place], vectors[place], threshold), None)
        if near is None:
            index.add(where[place], [(str(place), vectors[place].tobytes())])
        else:
            hits += 1
            wrong += not answer or rows[int(near[0])][2] != answer
        given.add((about, answer))
    return {
        "questions": count, "hit_rate": hits / count, "wrong_of_hits": wrong / max(hits, 1),
        "repeats": repeats / count, "repeats_found": (hits - wrong) / max(repeats, 1),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spider", type=Path)
    parser.add_argument("--squad", type=Path)
    parser.add_argument("--banking", type=Path)
    parser.add_argument("--model", default="minilm-l6")
    parser.add_argument("--quick", action="store_true", help="400 questions of each set")
    given = parser.parse_args()
    import luthier

    sets = {
        name: read(getattr(given, name))
        for name, read in (("spider", spider), ("squad", squad), ("banking", banking))
        if getattr(given, name) is not None
    }
    if not sets:
        parser.error("name at least one of --spider, --squad, --banking")
    engine = luthier.load(given.model)
    quality: dict[str, Any] = {}
    began, embedded = time.process_time(), 0
    for name, everything in sets.items():
        random.Random(0).shuffle(everything)
        rows = everything[:400] if given.quick else everything
        vectors = np.asarray(engine.embed([text for _, text, _ in rows]), np.float32)
        embedded += len(rows)
        for match in ("meaning", "words"):
            where = partitions(rows, words=match == "words")
            print(f"\n{name}, match: {match}\nthreshold   hits  wrong of hits  repeats found")
            for threshold in THRESHOLDS:
                found = stream(rows, vectors, where, threshold)
                quality[f"{name}/{match}/{threshold}"] = {key: round(value, 4) for key, value in found.items()}
                print(
                    f"{threshold:9.2f} {found['hit_rate']:6.1%} {found['wrong_of_hits']:14.1%} {found['repeats_found']:14.1%}"
                )
        print(
            f"{found['questions']:,} different questions, {found['repeats']:.0%} of them repeat an earlier one's answer"
        )
    figures = {"questions": embedded, "cpu_s": round(time.process_time() - began, 1), "model": given.model}
    print(json.dumps({"benchmark": "semantic_cache", "ratios": {}, "figures": figures, "quality": quality}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
