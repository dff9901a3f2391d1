"""``luthier kb questions``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli._knowledge import Name


def register(kb: typer.Typer) -> None:
    """Add the command."""

    @kb.command("questions")
    def questions(
        name: Name,
        *,
        model: Annotated[str, typer.Option(metavar="MODEL", help="The model that writes and checks them.")],
        output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="JSON Lines.")],
        n: Annotated[int, typer.Option("--n", min=1, help="How many.")] = 200,
        language: Annotated[str, typer.Option(help="en or zh; left out, each chunk's own.")] = "",
        negatives: Annotated[
            int, typer.Option(min=0, help="Chunks beside each question that look like its own and do not answer it.")
        ] = 0,
        top: Annotated[int, typer.Option(help="A search must find the chunk among so many.")] = 10,
        least_f1: Annotated[
            float,
            typer.Option("--least-f1", help="Words that the answer given from the chunk must share with the first."),
        ] = 0.5,
        most_holding: Annotated[
            int, typer.Option("--most-holding", help="Other chunks found that may hold the answer, too.")
        ] = 3,
        seed: Annotated[int, typer.Option(help="Which chunks are drawn.")] = 0,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Have a model write questions about a base's chunks, and keep those that prove good: for kb eval, kb tune and kb sft-data."""
        from luthier.cli._print import out, progress, say, show, show_json, table
        from luthier.knowledge.base import open_base
        from luthier.knowledge.synthesis import Checks, write_questions_of
        from luthier.strategies._load import load

        checks = Checks(least_f1=least_f1, top=top, most_holding=most_holding)
        with open_base(name) as base, progress() as drawn:
            engine = load(model, store=base.store)
            try:
                report = write_questions_of(
                    base, engine, output, n=n, language=language, checks=checks, negatives=negatives, seed=seed, progress=drawn
                )  # fmt: skip
            finally:
                engine.close()
        if as_json:
            show_json(report.as_dict())
            return
        out().print(
            f"{len(report.kept):,} questions in {report.path}; {report.asked:,} chunks were asked about", markup=False
        )
        dropped = report.as_dict()["dropped"]
        if dropped:
            show(table(("dropped", "questions"), list(dropped.items()), right=("questions",)))
        say(f"next: [bold]luthier kb eval {name} {output}[/] or [bold]luthier kb tune {name} --questions {output}[/]")
