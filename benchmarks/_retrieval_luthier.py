"""Luthier's side of ``retrieval.py``: a knowledge base as it comes, searched by each chain of steps."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _retrieval_work import MOST, Ask, judge, questions, timed

PIPELINES: dict[str, tuple[dict[str, Any], ...]] = {
    "dense": ({"name": "dense"},),
    "keyword": ({"name": "keyword"},),
    "hybrid": ({"name": "hybrid"},),
    "hybrid_words": ({"name": "hybrid", "dense": 1},),
    "hybrid_rerank": ({"name": "rerank", "weight": 0.2, "candidates": 15}, {"name": "hybrid", "dense": 1}),
}
"""The weights of ``hybrid_words`` and ``hybrid_rerank`` were chosen on validation questions, the latter for the reranker of ``_retrieval_reranker.py``."""


def main() -> None:
    """``CORPUS DATA SPLIT MOST CORES RERANKER OUT``, by ``retrieval.py``."""
    import torch

    corpus, data, split, most, cores, reranker, out = sys.argv[1:]
    torch.set_num_threads(int(cores))
    asked = questions(Path(data), split, int(most) or None)
    figures = measure(Path(corpus), asked, reranker)
    Path(out).write_text(json.dumps(figures), encoding="utf-8")


def measure(corpus: Path, asked: Sequence[Any], reranker: str) -> dict[str, Any]:
    """Make the base, ask it, delete it."""
    from luthier.knowledge.base import create_base, remove_base
    from luthier.knowledge.embed import Embedder
    from luthier.strategies._load import load

    name = f"benchmark-{corpus.parent.name}"
    base = create_base(name)
    try:
        base.embedder.close()
        # what an earlier run embedded must cost this one its time again: a cache of its own
        base.embedder = Embedder(base.embedder.engine, corpus.parent / "vectors.db")
        base.embedder.engine.embed(["warm"])
        report, cost = timed(lambda: base.add([corpus]))
        if report.failed:
            sys.exit(f"not read: {report.failed[:3]}")
        reader = load(reranker) if reranker else None
        pipelines = {
            each: judge(_ask(base, steps, reader), asked)
            for each, steps in PIPELINES.items()
            if reader is not None or "rerank" not in each
        }
    finally:
        base.close()
        remove_base(name)
        shutil.rmtree(corpus.parent / "vectors.db", ignore_errors=True)
    spent = {"ingest_s": round(cost.seconds, 3), "ingest_cpu_s": round(cost.cpu_seconds, 3)}
    return {**spent, "chunks": report.chunks, "pipelines": pipelines}


def _ask(base: Any, steps: Sequence[Mapping[str, Any]], reranker: Any) -> Ask:
    return lambda text: [
        (hit.source, hit.chunk.text) for hit in base.search(text, MOST, retrieval=steps, reranker=reranker)
    ]


if __name__ == "__main__":
    main()
