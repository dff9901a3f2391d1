"""``luthier kb create``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from luthier.cli._knowledge import Label, Meta, Setting, SkipBad, chosen, pairs, show_added


def register(kb: typer.Typer) -> None:
    """Add the command."""

    @kb.command("create")
    def create(
        name: Annotated[str, typer.Argument(help="1 to 64 letters, digits, '-', '_' or '.'.")],
        sources: Annotated[
            list[str] | None, typer.Argument(metavar="[PATH|URL...]", help="Add these at once, as kb add does.")
        ] = None,
        *,
        embedder: Annotated[str | None, typer.Option(metavar="MODEL", help="A model that embeds.")] = None,
        chunker: Annotated[str | None, typer.Option(metavar="NAME", help="How documents are cut.")] = None,
        index: Annotated[str | None, typer.Option(metavar="NAME", help="What keeps the chunks.")] = None,
        option: Setting = None,
        description: Annotated[str, typer.Option(help="What is in it, in a sentence.")] = "",
        label: Label = None,
        meta: Meta = None,
        skip_bad: SkipBad = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Make a knowledge base, and add documents to it if some are named."""
        from luthier.cli._print import progress, say
        from luthier.knowledge.base import create_base
        from luthier.knowledge.settings import read_settings

        given = chosen(embedder=embedder, chunker=chunker, index=index)
        settings: dict[str, Any] = read_settings({"description": description, **given}, option or ())
        with create_base(name, **settings) as base:
            made = base.record
            if not as_json:
                say(
                    f"knowledge base [bold]{name}[/]: embedded by {made.embedder}, cut by {made.chunker['name']}, "
                    f"kept in {made.index['name']}"
                )
            if sources:
                with progress() as shown:
                    report = base.add(sources, labels=label, meta=pairs(meta), progress=shown)
                show_added(name, report, as_json=as_json, skip_bad=skip_bad)
                return
        if as_json:
            from dataclasses import asdict

            from luthier.cli._print import show_json

            show_json(asdict(made))
        else:
            say(f"next: [bold]luthier kb add {name} PATH...[/]")
