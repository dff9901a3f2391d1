"""``luthier kb recall``."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.cli._knowledge import Name


def register(kb: typer.Typer) -> None:
    """Add the command."""

    @kb.command("recall")
    def recall(
        name: Name,
        *,
        sample: Annotated[int, typer.Option(min=1, help="Chunks to take a sentence from and look for.")] = 200,
        k: Annotated[int, typer.Option("-k", min=1, help="How many nearest chunks are compared.")] = 10,
        seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Measure how much of what exact search finds the approximate index finds."""
        from luthier.cli._print import out, progress, show_json
        from luthier.knowledge.base import open_base
        from luthier.knowledge.recall import ann_recall

        with open_base(name) as base, progress() as report:
            found = ann_recall(base, sample, k, seed=seed, progress=report)
        if as_json:
            show_json({"name": name, **found.as_dict()})
            return
        if not found.approximate:
            out().print(
                f"{name}: {found.chunks:,} chunks, no approximate index: every search compares all ({found.exact_ms:.1f} ms)",
                markup=False,
            )
            return
        out().print(
            f"{name}: recall@{k} {found.recall:.3f} of exact search (worst of {found.queries} queries {found.worst:.2f}); "
            f"{found.ann_ms:.1f} ms against {found.exact_ms:.1f} ms; {found.approximate:,} of {found.chunks:,} chunks are in the "
            "approximate index",
            markup=False,
        )
