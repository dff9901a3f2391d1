"""What both sides of ``retrieval.py`` share; nothing but the standard library, since the peers run in an environment of their own."""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import time
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

MOST = 10
"""Chunks that every pipeline gives."""

Found = list[tuple[str, str]]
"""(name of the file, text) of each chunk that a question found, best first."""
Ask = Callable[[str], Found]
T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """A question, the texts that answer it, and the file that holds them."""

    text: str
    answers: tuple[str, ...]
    file: str


@dataclass(frozen=True)
class Cost:
    """Seconds of the clock, and of all threads of this process on processors."""

    seconds: float
    cpu_seconds: float


def rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def write_corpus(folder: Path, out: Path) -> None:
    """``corpus.jsonl`` as text files, the title in the first line. Names say nothing: a peer embeds them."""
    out.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(rows(folder / "corpus.jsonl")):
        (out / f"{number:05}.txt").write_text(f"{row['title']}\n\n{row['text']}\n", encoding="utf-8")


def questions(folder: Path, split: str, most: int | None = None) -> list[Question]:
    """The questions of a split; of ``most`` every n-th, so that all articles are among them."""
    names = {row["id"]: f"{number:05}.txt" for number, row in enumerate(rows(folder / "corpus.jsonl"))}
    found = [
        Question(r["question"], tuple(r["answers"]), names[r["context_id"]]) for r in rows(folder / f"{split}.jsonl")
    ]
    step = math.ceil(len(found) / most) if most else 1
    return found[::step]


def timed(call: Callable[[], T]) -> tuple[T, Cost]:
    """What ``call`` gives, and what it took."""
    began, cpu = time.perf_counter(), time.process_time()
    value = call()
    return value, Cost(time.perf_counter() - began, time.process_time() - cpu)


def judge(ask: Ask, asked: Sequence[Question]) -> dict[str, float]:
    """recall@1, 5, 10, MRR@10, nDCG@10 and the time of a query: a chunk is right when it is of the question's paragraph and holds an answer."""
    ranks, took, cpu = [], [], []
    for each in asked[:5]:
        ask(each.text)
    for each in asked:
        found, cost = timed(lambda text=each.text: ask(text)[:MOST])  # type: ignore[misc]
        took.append(1000 * cost.seconds)
        cpu.append(1000 * cost.cpu_seconds)
        ranks.append(_rank(found, each))
    figures = {f"recall@{k}": _mean(rank is not None and rank <= k for rank in ranks) for k in (1, 5, 10)}
    figures["mrr"] = _mean(0.0 if rank is None else 1 / rank for rank in ranks)
    figures["ndcg@10"] = _mean(0.0 if rank is None else 1 / math.log2(1 + rank) for rank in ranks)
    figures["query_p50_ms"] = statistics.median(took)
    figures["query_p50_cpu_ms"] = statistics.median(cpu)
    return {name: round(value, 4) for name, value in figures.items()}


def threads(cores: int) -> dict[str, str]:
    """The environment of a process that computes on ``cores``."""
    named = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(named, str(cores)), "TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1"}


def is_right(file: str, text: str, question: Question) -> bool:
    """Whether a chunk is of the question's paragraph and holds an answer."""
    return Path(file).name == question.file and any(_plain(answer) in _plain(text) for answer in question.answers)


def _rank(found: Found, question: Question) -> int | None:
    return next((rank for rank, (file, text) in enumerate(found, 1) if is_right(file, text, question)), None)


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip().casefold()


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(map(float, values))
