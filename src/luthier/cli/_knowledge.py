"""What commands of ``luthier kb`` share: options, and what an addition or a rebuild did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from luthier.knowledge.ingest import AddReport

Name = Annotated[str, typer.Argument(metavar="NAME", help="A knowledge base.")]
Label = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="LABEL", help="Access label of these documents: a tenant, or a label of keys."),
]
Meta = Annotated[
    list[str] | None, typer.Option("--meta", metavar="KEY=VALUE", help="A value that searches can ask for.")
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Documents that cannot be read are no failure.")]
Setting = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", metavar="KEY=VALUE", help="For example chunker.tokens=200 or index.metric=dot."),
]

_MOST = 20
"""Failures and warnings that are printed."""


def pairs(texts: Sequence[str] | None) -> dict[str, Any]:
    """``KEY=VALUE`` texts; a key that comes more than once has all its values. Raises InputError."""
    from luthier.core.errors import InputError

    out: dict[str, Any] = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError(f"--meta must be KEY=VALUE, such as team=legal; got {text!r}")
        before = out.get(key)
        out[key] = value if before is None else [*before, value] if isinstance(before, list) else [before, value]
    return out


def chosen(**values: Any) -> dict[str, Any]:
    """The values that were given."""
    return {name: value for name, value in values.items() if value is not None}


def show_added(name: str, report: AddReport, *, as_json: bool, skip_bad: bool) -> None:
    """Print a report. Exits with 2 when documents failed, unless ``skip_bad``."""
    from dataclasses import asdict

    from rich.markup import escape

    from luthier.cli._print import err, out, show_json, warn

    if as_json:
        show_json(asdict(report))
    else:
        counts = ("added", "changed", "unchanged", "removed", "failed")
        said = [f"{len(getattr(report, each)):,} {each}" for each in counts if getattr(report, each)]
        out().print(f"{escape(name)}: {', '.join(said) or 'nothing to do'}; {report.chunks:,} new chunks")
        for source, what in report.warnings[:_MOST]:
            warn(f"{source}: {what}")
        if len(report.warnings) > _MOST:
            warn(f"and {len(report.warnings) - _MOST:,} more; luthier kb show {name} has them all")
        for source, reason in report.failed[:_MOST]:
            err().print(f"[red]failed:[/] {escape(source)}: {escape(reason)}")
        if len(report.failed) > _MOST:
            err().print(f"[red]and {len(report.failed) - _MOST:,} more failed[/]; luthier kb show {escape(name)}")
    if report.failed and not skip_bad:
        raise typer.Exit(2)
