"""``luthier data mixture``: several datasets as instructions in many formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def mixture_command(
    mix: Annotated[Path, typer.Argument(metavar="MIX.yaml", help="Sources, formats and their shares.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value ...]", help="For example rows=2000 formats.inverted=0.2.")
    ] = None,
    *,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.jsonl", help="Where the conversations go.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Put the rows of several datasets into instructions: zero-shot, few-shot and with the reasoning, as conversations to train on."""
    from luthier.cli import _print
    from luthier.data.mixture import Format, mixture

    with _print.progress() as progress:
        made = mixture(mix, overrides or (), out=out, progress=progress)
    if as_json:
        counts = {name: dict(of) for name, of in made.counts.items()}
        _print.show_json(
            {"path": str(made.path), "rows": len(made.dataset), "counts": counts}
            | {"copies": made.copies, "overlapping": made.overlapping}
        )
        return
    used = [name for name in Format.__args__ if any(of.get(name) for of in made.counts.values())]  # type: ignore[attr-defined]
    rows = [
        [name, *(f"{of.get(each, 0):,}" for each in used), f"{sum(of.values()):,}"] for name, of in made.counts.items()
    ]
    heads = [each.replace("_", " ") for each in used]
    _print.show(_print.table(["source", *heads, "rows"], rows, right=[*heads, "rows"]))
    if made.copies:
        _print.warn(f"{made.copies:,} rows said the same as another and are left out")
    if made.overlapping:
        _print.warn(f"{made.overlapping:,} rows stand in a test file and are left out")
    _print.say(f"{len(made.dataset):,} conversations in {made.path}")
