"""``luthier kb tune``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli._knowledge import Name

if TYPE_CHECKING:
    from luthier.knowledge.tune import TuneReport


def register(kb: typer.Typer) -> None:
    """Add the command."""

    @kb.command("tune")
    def tune(
        name: Name,
        overrides: Annotated[
            list[str] | None,
            typer.Argument(metavar="[key=value ...]", help="Of the run, for example train.epochs=2 method.rank=32."),
        ] = None,
        *,
        questions: Annotated[
            Path, typer.Option(metavar="FILE", help="Questions to learn from, as kb questions writes them.")
        ],
        held_out: Annotated[
            str,
            typer.Option("--held-out", metavar="FILE|SHARE", help="Questions to prove by, or the share kept for it."),
        ] = "0.3",
        method: Annotated[str, typer.Option(help="lora, full or another method.")] = "lora",
        negatives: Annotated[
            int, typer.Option(min=0, help="Near chunks beside each question that do not answer it.")
        ] = 3,
        reader: Annotated[
            str, typer.Option(metavar="MODEL", help="Learn what helps this model to the right answer (RA-DIT).")
        ] = "",
        candidates: Annotated[
            int, typer.Option(min=2, help="With --reader: chunks that it judges for each question.")
        ] = 8,
        model_name: Annotated[str, typer.Option("--name", metavar="MODEL", help="Name of the result.")] = "",
        rebuild: Annotated[bool, typer.Option("--rebuild", help="If it is better, embed the base anew by it.")] = False,
        seed: Annotated[int, typer.Option(help="What is held out, and the order of training.")] = 0,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Tune a base's embedder on questions about it, and measure on others whether its searches find more."""
        from luthier.cli._print import show_json
        from luthier.cli._training import display
        from luthier.knowledge.tune import tune_base

        with display() as shown:
            report = tune_base(
                name, questions, held_out=_share(held_out), method=method, overrides=overrides or (), negatives=negatives,
                reader=reader, candidates=candidates, model_name=model_name, rebuild=rebuild, seed=seed,
                metrics=shown.metrics, progress=shown.progress,
            )  # fmt: skip
        if as_json:
            show_json(report.as_dict())
        else:
            _show(report)


def _share(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _show(report: TuneReport) -> None:
    from luthier.cli._print import out, say, show, table

    out().print(
        f"{report.model}: {report.embedder} tuned on {report.trained:,} questions about {report.base}, proved by {report.held_out:,} others"
        + (f"; {report.unlocated:,} have no chunk in the base" if report.unlocated else ""),
        markup=False,
    )
    rows = [
        (
            f"recall@{each.k}",
            f"{each.before.value:.1%}",
            f"{each.after.value:.1%}",
            f"{each.change.value:+.1%} ({each.change.low:+.1%} to {each.change.high:+.1%})",
            each.verdict,
        )
        for each in report.figures
    ]
    show(table(("", "before", "after", "change (95% interval)", ""), rows, right=("before", "after")))
    if report.rebuilt:
        say(f"{report.base} is embedded by [bold]{report.model}[/] now")
    elif report.verdict == "better":
        say(f"next: [bold]luthier kb rebuild {report.base} --embedder {report.model}[/]")
    else:
        say(f"{report.verdict} than {report.embedder}: leave the base as it is")
