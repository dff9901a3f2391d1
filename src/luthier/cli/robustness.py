"""``luthier robustness MODEL TASK``: how far a score moves when the questions are worded otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from luthier.evaluation.robustness import Robustness

_EXAMPLES = 5


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("robustness")(robustness)


def robustness(
    model: Annotated[str, typer.Argument(help="A stored model, an endpoint, openai:MODEL@URL, or fake.")],
    task: Annotated[str, typer.Argument(metavar="TASK", help="A task file, or the name of a benchmark.")],
    *,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="lower_case, upper_case, white_space, punctuation, typos, synonyms or option_order; repeatable. Default: all.",
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A prompt of the catalogue to ask with; repeatable (luthier prompts list)."),
    ] = None,
    no_prompts: Annotated[bool, typer.Option("--no-prompts", help="Keep the task's own prompt.")] = False,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    strategy: Annotated[str | None, typer.Option(help="How to ask, for example few_shot.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first examples.")] = None,
    engine: Annotated[str, typer.Option(help="auto, torch, llamacpp, openai or fake.")] = "auto",
    seed: Annotated[int, typer.Option(help="Decides which words are changed.")] = 0,
    png: Annotated[str | None, typer.Option(metavar="FILE", help="Also write the picture here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Ask the same questions in other case, spacing, spelling, words, option order and prompts, and show the spread of the scores.

    Interrupted, the same command goes on where it stopped.
    """
    from pathlib import Path

    from luthier.cli import _print
    from luthier.evaluation.robustness import draw
    from luthier.evaluation.robustness import robustness as run

    with _print.progress() as progress:
        report = run(
            model,
            task,
            variants=variant or (),
            prompts=[] if no_prompts else prompt or None,
            split=split,  # type: ignore[arg-type]
            strategy=strategy,
            limit=limit,
            engine=engine,
            seed=seed,
            progress=progress,
        )
    if png is not None:
        draw(report, Path(png))
    if as_json:
        _print.show_json(report.as_dict())
    else:
        _show(report)


def _show(report: Robustness) -> None:
    from rich.markup import escape

    from luthier.cli import _print
    from luthier.evaluation.robustness import REPORT_PNG
    from luthier.tournament import figures

    rows = [
        (
            f"[red]{escape(v.name)}[/]" if v.name == report.worst and at else escape(v.name),
            f"{v.value:.3f}",
            f"[{v.low:.3f}, {v.high:.3f}]".replace("[", r"\["),
            f"{v.difference:+.3f}" if at else "",
            figures.probability(v.p_adjusted) if at else "",
            f"{v.flips:.1%}" if at else "",
            v.changed if at else "",
        )
        for at, v in enumerate(report.variants)
    ]
    columns = ["variant", figures.metric(report.scorer), "95% interval", "difference", "p (Holm)", "flips", "changed"]
    title = f"{escape(report.model)} on {escape(report.task)}: {report.examples:,} questions in {len(rows)} wordings"
    _print.show(_print.table(columns, rows, title=title, right=columns[1:]))
    _print.show(
        f"mean {report.mean:.3f} ± {report.std:.3f}, from {report.lowest:.3f} to {report.highest:.3f} (spread [bold]{report.spread:.3f}[/]); "
        f"worst: {escape(report.worst)}; {report.stable:.1%} of the questions come out the same in every wording"
    )
    for each in report.flipped[:_EXAMPLES]:
        _print.show(f"  [dim]flips in {len(each.variants)}:[/] {escape(' '.join(each.input.split())[:100])}")
    for note in report.notes:
        _print.show(f"[dim]{escape(note)}[/]")
    _print.show(f"[dim]picture:[/] {report.folder}/{REPORT_PNG}")
