"""``luthier kb set``."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.cli._knowledge import Name


def register(kb: typer.Typer) -> None:
    """Add the command."""

    @kb.command("set")
    def change(
        name: Name,
        settings: Annotated[
            list[str],
            typer.Argument(metavar="KEY=VALUE...", help="description, retrieval, answer.model, answer.k, ..."),
        ],
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Change how a base is described, searched and asked.

        For example: luthier kb set handbook answer.model=smollm2-135m 'retrieval=[mmr, hybrid]'
        """
        from dataclasses import asdict

        from luthier.cli._kb_show import show_settings
        from luthier.cli._print import show_json
        from luthier.knowledge.settings import set_base

        record = set_base(name, settings)
        if as_json:
            show_json(asdict(record))
        else:
            show_settings(record)
