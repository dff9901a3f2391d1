"""``luthier tournament TASK.yaml [key=value ...]``: every way to solve a task, one board."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from luthier.core.task import Task
    from luthier.tournament.entry import Entry, Planned
    from luthier.training.preflight import Prediction


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def tournament(
        task: Annotated[
            str, typer.Argument(metavar="TASK.yaml", help="A task file; its entrants, or the default ones.")
        ],
        overrides: Annotated[
            list[str] | None,
            typer.Argument(
                metavar="[key=value ...]", help="For example train.epochs=1 'entrants=\\[zero_shot, lora]'."
            ),
        ] = None,
        engine: Annotated[str, typer.Option(help="auto, torch, llamacpp, openai or fake.")] = "auto",
        only: Annotated[
            list[str] | None, typer.Option(metavar="NAME", help="Run only this entrant; repeatable.")
        ] = None,
        plan: Annotated[
            bool,
            typer.Option(
                "--plan",
                help="Only say what would be done: predicted memory and time, and where results can be served.",
            ),
        ] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print the board (or the plan) as JSON.")] = False,
    ) -> None:
        """Adapt models in several ways, score them on the same held-out examples, and say which to keep.

        Interrupted, the same command finishes only what is missing. An entrant that fails is shown with its reason; the exit code
        is 0 when at least two finished (or all that were asked for).
        """
        from luthier.cli import _print, _results
        from luthier.tournament.tournament import tournament as run

        if plan:
            _plan(task, overrides or (), engine=engine, only=only or (), as_json=as_json)
            return
        with _print.progress() as progress:
            board = run(
                task,
                overrides or (),
                engine=engine,
                only=only or (),
                progress=progress,
                planned=None if as_json else _say_plan,
                predicted=None if as_json else _say_predictions,
            )
        if as_json:
            _print.show_json(board.as_dict())
        else:
            _results.show_board(board)
        if len(board.finished) < min(2, len(board.standings)):
            raise typer.Exit(1)


def _say_plan(task: Task, plan: Sequence[Planned]) -> None:
    """What is going to be done, and where each result could be served, before it begins."""
    from rich.markup import escape

    from luthier.cli import _print

    sizes = {part: len(task.examples(part)) for part in ("train", "validation", "test")}
    labels = f", {len(task.labels)} labels" if task.labels else ""
    _print.say(
        f"[bold]{escape(task.name)}[/]: {sizes['train']:,} train, {sizes['validation']:,} validation, {sizes['test']:,} test{labels}"
    )
    for planned in plan:
        served = ", ".join(f"{engine} {how}" for engine, how in planned.serving.items())
        told = f"  [bold]{escape(planned.entrant.name)}[/]: {escape(planned.entrant.way)} on {escape(planned.entrant.model)}"
        _print.say(told + (f"  [dim]serving: {escape(served)}[/]" if served else ""))


def _say_predictions(entries: Sequence[Entry]) -> None:
    """What each training that is to come will take."""
    from luthier.cli import _print

    lines = [(e.planned, e.predicted) for e in entries if e.predicted is not None]
    if lines:
        _print.say("[bold]before training[/], predicted:")
    for planned, predicted in lines:
        _print.say(f"  {_foretold(planned, predicted)}")
        _warn_of_memory(planned, predicted)


def _foretold(planned: Planned, predicted: Prediction | None) -> str:
    """One line: trainings, time, memory, how wrong earlier predictions were."""
    from rich.markup import escape

    from luthier.tournament import figures

    assert predicted is not None
    trainings, budget = planned.trainings, planned.settings.budget
    seconds = predicted.seconds * trainings
    if budget is not None and budget.seconds is not None:
        seconds = min(seconds, budget.seconds * len(planned.seeds))
    often = f"{trainings} trainings, " if trainings > 1 else ""
    return (
        f"[bold]{escape(planned.entrant.name)}[/]: {often}about {figures.duration(seconds)}, peak {figures.megabytes(predicted.peak_mb)}, "
        f"trains {figures.count(predicted.trainable)} parameters [dim]({figures.prediction_errors(predicted.errors)}; speed from {predicted.based_on})[/]"
    )


def _warn_of_memory(planned: Planned, predicted: Prediction | None) -> None:
    from luthier.cli import _print
    from luthier.tournament import figures

    if predicted is not None and not predicted.fits:
        _print.warn(
            f"{planned.entrant.name} may need {figures.megabytes(predicted.peak_mb)} and {figures.megabytes(predicted.free_mb)} are free; "
            "train.max_tokens_per_batch=512 needs less, or leave it out with --only"
        )


def _plan(task: str, overrides: Sequence[str], *, engine: str, only: Sequence[str], as_json: bool) -> None:
    """Say what would be done, and do nothing of it."""
    from luthier.cli import _print
    from luthier.store.database import open_store
    from luthier.tournament.plan import look_ahead, read_plan
    from luthier.training.shared import Shared

    store = open_store()
    plan = read_plan(task, overrides, engine=engine, only=only, store=store)
    shared = Shared()
    found = [(planned, look_ahead(store, planned, shared)) for planned in plan.entrants]
    if as_json:
        _print.show_json([_planned(planned, predicted) for planned, predicted in found])
        return
    _say_plan(plan.task, plan.entrants)
    for planned, predicted in found:
        if predicted is not None:
            _print.show(_foretold(planned, predicted))
            _warn_of_memory(planned, predicted)
    _print.say("[dim]next:[/] the same command without --plan")


def _planned(planned: Planned, predicted: Prediction | None) -> dict[str, Any]:
    return {
        "entrant": planned.entrant.as_dict(),
        "serving": dict(planned.serving),
        "trainings": planned.trainings,
        "seeds": list(planned.seeds),
        "predicted": predicted.as_dict() if predicted is not None else None,
    }
