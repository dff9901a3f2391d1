"""``luthier kb add``."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.cli._knowledge import Label, Meta, Name, SkipBad, pairs, show_added


def register(kb: typer.Typer) -> None:
    """Add the command."""

    @kb.command("add")
    def add(
        name: Name,
        sources: Annotated[list[str], typer.Argument(metavar="PATH|URL...", help="Files, folders and URLs.")],
        *,
        label: Label = None,
        no_labels: Annotated[
            bool, typer.Option("--no-labels", help="Take the access labels of these documents away.")
        ] = False,
        meta: Meta = None,
        option: Annotated[
            list[str] | None,
            typer.Option("--option", "-o", metavar="PARSER.KEY=VALUE", help="For a parser, such as pdf.password=..."),
        ] = None,
        skip_bad: SkipBad = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Add documents: new and changed ones are read, unchanged ones cost nothing, and what has gone from a folder leaves.

        Interrupted, the same command goes on. Exits with 2 when a document cannot be read (the others are added all the same),
        unless --skip-bad.
        """
        from luthier.cli._print import progress
        from luthier.core.config import from_mapping
        from luthier.core.errors import InputError
        from luthier.knowledge.base import open_base

        if label and no_labels:
            raise InputError("--label and --no-labels exclude each other")
        options = from_mapping({}, option or ()).values
        with open_base(name) as base, progress() as shown:
            report = base.add(
                sources, labels=() if no_labels else label, meta=pairs(meta), options=options, progress=shown
            )
        show_added(name, report, as_json=as_json, skip_bad=skip_bad)
