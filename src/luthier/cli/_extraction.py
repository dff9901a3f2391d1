"""``luthier data extraction``: annotated texts as instructions to extract."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def extraction_command(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Texts with entities, relations or events.")],
    *,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.jsonl", help="Where the conversations go.")],
    negatives: Annotated[
        int | None,
        typer.Option(min=0, help="Each row lists its own types and that many others; default: every row lists all."),
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="Of the instruction: en or zh; default: that of the texts.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws the other types.")] = 0,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Go on without broken rows, and count them.")] = False,
) -> None:
    """Turn annotated texts into instruction conversations that answer in JSON, to train on or to mix with others."""
    from luthier.cli import _print
    from luthier.core.errors import InputError
    from luthier.data.extraction import conversations
    from luthier.data.read import read, write

    if language not in (None, "en", "zh"):
        raise InputError(f"--language must be en or zh; got {language!r}")
    dataset = read(file, skip_bad=skip_bad)
    made = conversations(dataset, negatives=negatives, language=language, seed=seed)  # type: ignore[arg-type]
    path = write(made, out)
    if made.problems:
        _print.warn(f"left out {len(made.problems):,} broken rows")
    _print.say(f"{len(made):,} conversations in {path}")
