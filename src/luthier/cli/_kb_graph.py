"""``luthier kb graph``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli._knowledge import Name

if TYPE_CHECKING:
    from luthier.knowledge.graph import GraphReport

_MOST = 10


def register(kb: typer.Typer) -> None:
    """Add the command."""

    @kb.command("graph")
    def graph(
        name: Name,
        *,
        model: Annotated[
            str | None,
            typer.Option(
                "--model", metavar="NAME", help="What reads the chunks that are new; left out: show what is there."
            ),
        ] = None,
        about: Annotated[str | None, typer.Option(metavar="NAME", help="Show what is stated about an entity.")] = None,
        anew: Annotated[bool, typer.Option("--anew", help="Read all chunks again.")] = False,
        retry: Annotated[
            bool, typer.Option("--retry", help="Also chunks whose last answer could not be read.")
        ] = False,
        engine: Annotated[str, typer.Option(help="auto, torch, llamacpp, openai or fake.")] = "auto",
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Build a base's graph of entities and relations, which the search step graph follows.

        A model reads each chunk once; the same command later reads only what is new, and interrupted it goes on where it was.
        """
        from dataclasses import asdict

        from luthier.cli._print import progress, show_json
        from luthier.core.errors import InputError
        from luthier.knowledge.base import open_base
        from luthier.knowledge.graph import about as stated
        from luthier.knowledge.graph import build_graph, graph_report
        from luthier.strategies._load import load

        if (anew or retry) and not model:
            raise InputError("--anew and --retry need --model")
        with open_base(name) as base:
            if model:
                opened = load(model, engine=engine, store=base.store)
                try:
                    with progress() as shown:
                        report = build_graph(base, opened, anew=anew, retry=retry, progress=shown)
                finally:
                    opened.close()
            else:
                report = graph_report(base)
            found = stated(base, about) if about else None
        if as_json:
            keys = ("source", "relation", "target", "chunk")
            show_json(asdict(report) if found is None else [dict(zip(keys, row, strict=True)) for row in found])
        elif found is None:
            _show(name, report)
        else:
            _show_relations(found)


def _show(name: str, report: GraphReport) -> None:
    from luthier.cli._print import out, show, table, warn

    changed = f" ({report.read:,} read now, {report.removed:,} gone)" if report.read or report.removed else ""
    out().print(
        f"{name}: {report.entities:,} entities, {report.relations:,} relations in {report.chunks:,} chunks{changed}",
        markup=False,
    )
    for chunk, reason in report.failed[:_MOST]:
        warn(f"chunk {chunk}: {reason}")
    if len(report.failed) > _MOST:
        warn(f"and {len(report.failed) - _MOST:,} more")
    if report.most_related:
        from rich.markup import escape

        rows = [(escape(entity), f"{count:,}") for entity, count in report.most_related]
        show(table(("entity", "relations"), rows, right=("relations",)))


def _show_relations(found: list[tuple[str, str, str, str]]) -> None:
    from rich.markup import escape

    from luthier.cli._print import show, table

    show(table(("source", "relation", "target", "chunk"), [tuple(map(escape, row)) for row in found]))
