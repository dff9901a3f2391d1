"""A cross-encoder for ``retrieval.py``, tuned on training questions with the wrong chunks that our own hybrid search puts first.

    python benchmarks/_retrieval_reranker.py --data FOLDER [--sets squad cmrc_zh] [--negatives 4] [--epochs 1] [--name NAME]

The recipe is ``luthier tune`` with objective ``rank`` on rows of ``{"anchor", "positive", "negatives"}``.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _retrieval_work import is_right, questions, write_corpus

CANDIDATES = 20
"""Chunks of a search from which negatives are drawn."""
NAME = "benchmark-reranker"


def mine(dataset: Path, negatives: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of a set's training questions. Questions whose right chunk the search does not find teach nothing and are left out."""
    from luthier.knowledge.base import create_base, remove_base

    draw = random.Random(seed)
    out = []
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(dataset, Path(folder) / "corpus")
        name = f"benchmark-{Path(folder).name}"
        base = create_base(name)
        try:
            base.add([Path(folder) / "corpus"])
            for question in questions(dataset, "train"):
                hits = base.search(question.text, CANDIDATES, retrieval=[{"name": "hybrid"}])
                right = [hit.chunk.text for hit in hits if is_right(hit.source, hit.chunk.text, question)]
                # other chunks of the right paragraph may answer, too
                wrong = [hit.chunk.text for hit in hits if Path(hit.source).name != question.file]
                if right and wrong:
                    first, rest = wrong[: negatives // 2], wrong[negatives // 2 :]
                    drawn = first + draw.sample(rest, min(len(rest), negatives - len(first)))
                    out.append({"anchor": question.text, "positive": right[0], "negatives": drawn})
        finally:
            base.close()
            remove_base(name)
    return out


def train(
    datasets: Sequence[Path], cores: int, *, negatives: int = 4, epochs: float = 1, name: str = NAME, rows: int = 0
) -> str:
    """Mine and tune; returns the model's name."""
    import torch

    from luthier.training.tune import tune

    torch.set_num_threads(cores)
    lines = [row for dataset in datasets for row in mine(dataset, negatives)]
    random.Random(0).shuffle(lines)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.jsonl"
        chosen = lines[: rows or None]
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen), encoding="utf-8")
        config = {
            "name": name,
            "model": "minilm-l6",
            "data": {"train": str(path), "overlong": "truncate"},
            "method": "full",
            "objective": {"name": "rank", "loss": "listwise"},
            "train": {"epochs": epochs, "batch_size": 16, "learning_rate": 1e-4},
        }
        return tune(config, replace=True).model.name


def main() -> None:
    """Read the command line, train, say the name."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=["squad", "cmrc_zh"])
    parser.add_argument("--negatives", type=int, default=4)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--rows", type=int, default=0, help="at most so many; 0: all")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--name", default=NAME)
    given = parser.parse_args()
    sets = [given.data / each for each in given.sets]
    print(train(sets, given.cores, negatives=given.negatives, epochs=given.epochs, name=given.name, rows=given.rows))


if __name__ == "__main__":
    main()
