"""``luthier kb rebuild``."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.cli._knowledge import Name, Setting, SkipBad, chosen, show_added


def register(kb: typer.Typer) -> None:
    """Add the command."""

    @kb.command("rebuild")
    def rebuild(
        name: Name,
        *,
        embedder: Annotated[str | None, typer.Option(metavar="MODEL", help="Another embedding model.")] = None,
        chunker: Annotated[str | None, typer.Option(metavar="NAME", help="Another way to cut.")] = None,
        index: Annotated[str | None, typer.Option(metavar="NAME", help="Another index.")] = None,
        option: Setting = None,
        skip_bad: SkipBad = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Read, cut and embed all documents anew, for another embedder, chunker or index. The old index answers until the end.

        Documents whose files are gone or cannot be read any more keep their place in the list as failed.
        """
        from luthier.cli._print import progress
        from luthier.knowledge.base import rebuild_base

        given = chosen(embedder=embedder, chunker=chunker, index=index)
        with progress() as shown:
            report = rebuild_base(name, overrides=option or (), progress=shown, **given)
        show_added(name, report, as_json=as_json, skip_bad=skip_bad)
