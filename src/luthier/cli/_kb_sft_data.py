"""``luthier kb sft-data``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli._knowledge import Name


def register(kb: typer.Typer) -> None:
    """Add the command."""

    @kb.command("sft-data")
    def sft_data(
        name: Name,
        *,
        questions: Annotated[Path, typer.Option(metavar="FILE", help="Questions with answers, as for kb eval.")],
        output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Conversations, JSON Lines.")],
        distractors: Annotated[int, typer.Option(min=1, help="Passages beside the right one.")] = 3,
        drop_gold: Annotated[
            float,
            typer.Option("--drop-gold", help="Share of questions shown without their passage: not in the documents."),
        ] = 0.2,
        instruction: Annotated[
            str, typer.Option(help="In place of the usual one, as answer.instruction of the base.")
        ] = "",
        seed: Annotated[int, typer.Option(help="Order of passages, and which questions lose theirs.")] = 0,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Write training data for a model that answers from documents: right passage among wrong ones, cited answers, and refusals."""
        from luthier.cli._print import out, progress, say, show_json
        from luthier.knowledge.base import open_base
        from luthier.knowledge.sft import write_sft_rows

        with open_base(name) as base, progress() as drawn:
            own = str(base.record.answer.get("instruction") or "")
            report = write_sft_rows(
                base, questions, output, distractors=distractors, drop_gold=drop_gold, instruction=instruction or own,
                seed=seed, progress=drawn,
            )  # fmt: skip
        if as_json:
            show_json(report.as_dict())
            return
        left = ", ".join(f"{count:,} {why}" for why, count in report.left_out.items())
        out().print(
            f"{report.answered + report.not_in_documents:,} rows in {report.path}: {report.answered:,} answered, "
            f"{report.not_in_documents:,} not in the documents" + (f"; left out: {left}" if left else ""),
            markup=False,
        )
        say(f"next: [bold]luthier tune run.yaml data.path={output} objective=sft[/]")
