"""``luthier continual STREAM.yaml [key=value ...]``: learn task after task, and say what was forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from luthier.tournament.continual import Continual, Step


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def continual(
        stream: Annotated[
            Path, typer.Argument(metavar="STREAM.yaml", help="Keys: model stream method objective train replay.")
        ],
        overrides: Annotated[
            list[str] | None,
            typer.Argument(metavar="[key=value ...]", help="For example replay=0.2 method.rank=32."),
        ] = None,
        engine: Annotated[str, typer.Option(help="auto, torch, llamacpp, openai or fake.")] = "auto",
        force: Annotated[
            bool, typer.Option("--force", help="Train again from the start, and take the names from other models.")
        ] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    ) -> None:
        """Tune a model on a stream of tasks with replay, and score every earlier task again after each step.

        Interrupted, the same command goes on where it was.
        """
        from luthier.cli import _print
        from luthier.tournament.continual import continual as run

        with _print.progress() as progress:
            found = run(stream, overrides or (), engine=engine, progress=progress, replace=force, stepped=_say)
        if as_json:
            _print.show_json(found.as_dict())
        else:
            _report(found)


def _say(step: Step) -> None:
    """One line a step, as it is done."""
    from rich.markup import escape

    from luthier.cli import _print

    scores = "  ".join(f"{cell.value:.3f}" for cell in step.cells)
    _print.say(
        f"[bold]{escape(step.model)}[/]  {step.rows:,} rows of {escape(step.task)}, {step.replayed:,} replayed:  {scores}"
    )


def _report(found: Continual) -> None:
    """The triangle, what follows from it, and what to type next."""
    from rich.markup import escape

    from luthier.cli import _print
    from luthier.tournament.continual import PICTURE

    names = [escape(step.task) for step in found.steps]
    rows = [
        [f"after {name}", f"{step.replayed:,}", *(f"{cell.value:.3f}" for cell in step.cells)]
        for name, step in zip(names, found.steps, strict=True)
    ]
    _print.show(_print.table(["", "replayed", *names], rows, title=f"{found.primary} on the test rows", right=names))
    figures = found.figures
    lines = {
        "average": f"{figures.average:.3f} at the end, {figures.learning:.3f} when each was learned",
        "backward transfer": "" if figures.backward_transfer is None else f"{figures.backward_transfer:+.3f}",
        "forgetting": ""
        if figures.forgetting is None
        else f"{figures.forgetting:.3f} ("
        + ", ".join(f"{name} {lost:.3f}" for name, lost in zip(names, figures.by_task, strict=False))
        + ")",
        "picture": escape(str(Path(found.folder) / PICTURE)),
    }
    for name, value in lines.items():
        if value:
            _print.out().print(f"{name:18} {value}")
    model = escape(found.model)
    _print.out().print(f"\nnext: [bold]luthier serve {model}[/]  or  [bold]luthier lineage {model}[/]")
