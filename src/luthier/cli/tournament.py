"""``luthier tournament TASK.yaml [key=value ...]``: every way to solve a task, one board."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from luthier.core.task import Task
    from luthier.tournament.standing import Planned


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
        as_json: Annotated[bool, typer.Option("--json", help="Print the board as JSON.")] = False,
    ) -> None:
        """Adapt models in several ways, score them on the same held-out examples, and say which to keep.

        Interrupted, the same command finishes only what is missing. An entrant that fails is shown with its reason; the exit code
        is 0 when at least two finished (or all that were asked for).
        """
        from luthier.cli import _print, _results
        from luthier.tournament.tournament import tournament as run

        with _print.progress() as progress:
            board = run(
                task,
                overrides or (),
                engine=engine,
                only=only or (),
                progress=progress,
                planned=None if as_json else _say_plan,
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
