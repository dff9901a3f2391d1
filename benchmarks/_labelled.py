"""Sets of labelled texts as ``methods.py`` and ``table2.py`` read them (a folder of ``train.jsonl`` and ``test.jsonl`` each), and their figure."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

LONGEST = 400  # characters of a text that are read: the sets have a few reviews of thousands


def check_sets(parser: ArgumentParser, folder: Path, sets: Iterable[str]) -> None:
    """End with what is missing, before any work."""
    for name in sets:
        for part in ("train", "test"):
            path = folder / name / f"{part}.jsonl"
            if not path.is_file():
                parser.error(f"{path} is missing; --data must hold a folder for each of --sets")


def read_rows(path: Path, count: int) -> Any:
    """``count`` rows of a file, drawn evenly over the labels, texts cut to what is read."""
    from luthier.core.message import user
    from luthier.data.read import read
    from luthier.data.split import split

    data = read(path)
    if count < len(data):
        share = count / len(data)
        data = split(data, train=share, validation=0.0, test=1.0 - share, seed=0).train
    cut = tuple(replace(e, messages=user(e.text[:LONGEST])) for e in data.examples)
    return replace(data, examples=cut, name=f"{path.parent.name}-{path.stem}")


def only_training(train: Any) -> Any:
    """Splits with training rows alone."""
    from luthier.core.dataset import Splits

    nothing = replace(train, name="none", examples=())
    return Splits(train, nothing, nothing)


def macro_f1(given: list[str], wanted: list[str]) -> float:
    """scikit-learn's, over the labels of the test rows."""
    from sklearn.metrics import f1_score

    return float(f1_score(wanted, given, labels=sorted(set(wanted)), average="macro", zero_division=0.0))
