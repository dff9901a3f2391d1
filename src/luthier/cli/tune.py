"""``luthier tune RUN.yaml [key=value ...]``: train a model and register it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from luthier.training.tune import TuneResult


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def tune(
        run: Annotated[
            Path,
            typer.Argument(
                metavar="RUN.yaml",
                help="Sections: model data prompt method objective train; or several of them under steps.",
            ),
        ],
        overrides: Annotated[
            list[str] | None,
            typer.Argument(metavar="[key=value ...]", help="For example method.rank=32 train.epochs=3."),
        ] = None,
        force: Annotated[
            bool, typer.Option("--force", help="Train again from the start, and take the name from another model.")
        ] = False,
        plan: Annotated[
            bool, typer.Option("--plan", help="Only predict memory and time, and say where the result can be served.")
        ] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print the result (or the plan) as JSON.")] = False,
    ) -> None:
        """Adapt a model to your data. Interrupted, the same command goes on at its last checkpoint."""
        from luthier.cli import _pipeline, _print
        from luthier.cli._training import display
        from luthier.training.pipeline import is_pipeline
        from luthier.training.tune import tune as train

        if is_pipeline(run):
            if plan:
                _pipeline.show_plan(run, overrides or (), as_json=as_json)
            else:
                with display() as shown:
                    done = _pipeline.run(run, overrides or (), shown, force=force)
                _pipeline.report(done, as_json=as_json)
            return
        if plan:
            _plan(run, overrides or (), as_json=as_json)
            return
        with display() as shown:
            result = train(
                run,
                overrides or (),
                metrics=shown.metrics,
                progress=shown.progress,
                started=shown.started,
                resume=not force,
                replace=force,
            )
        if as_json:
            _print.show_json(
                {"run": result.run.id, "model": result.model.name, "reused": result.reused, **result.summary}
            )
        else:
            _report(result)


def _plan(run: Path, overrides: Sequence[str], *, as_json: bool) -> None:
    """Say what training would take, and do nothing of it."""
    from luthier.cli import _print
    from luthier.cli._training import HOW, again
    from luthier.store.database import open_store
    from luthier.store.models import remove
    from luthier.tournament import figures
    from luthier.training.from_scratch import advice, is_new
    from luthier.training.preflight import look_ahead, sketch
    from luthier.training.resolve import resolve
    from luthier.training.shared import Shared

    store = open_store()
    job = resolve(run, overrides, store)
    shared = Shared()
    found = look_ahead(store, job, shared)
    said = advice(job.base, found.tokens, sum(sketch(store, job, shared)[1])) if is_new(job.base) else None
    if job.made:
        remove(store, job.base.name)  # a plan leaves nothing behind; the run makes the same model again
    if as_json:
        told = {"advice": said.as_dict()} if said is not None else {}
        _print.show_json({"name": job.name, "serving": dict(job.serving), "predicted": found.as_dict(), **told})
        return
    rows = {
        "model": f"{job.name} = {job.method.entry.name}({job.base.name}), objective {job.objective.entry.name}",
        "trains": f"{found.trainable:,} parameters in {found.steps:,} steps, {found.tokens:,} tokens, by {job.config.train.optimizer.name}",
        **({"tokens": said.text()} if said is not None else {}),
        "time": f"about {figures.duration(found.seconds)} (speed from {found.based_on})",
        "memory": f"peak about {figures.megabytes(found.peak_mb)}, {figures.megabytes(found.free_mb)} free: "
        + ", ".join(f"{what} {figures.megabytes(mb)}" for what, mb in found.parts.items() if mb),
        "earlier": figures.prediction_errors(found.errors),
        "serving": "; ".join(f"{engine}: {HOW[how]}" for engine, how in job.serving.items()),
    }
    if found.checkpointing:
        rows["memory"] += f" ({again(job)})"
    for name, value in rows.items():
        _print.out().print(f"{name:8} {value}", markup=False)
    if not found.fits:
        _print.warn("that is more memory than is free; train.max_tokens_per_batch=512 needs less")


def _report(result: TuneResult) -> None:
    """The result: the curve, the figures, what to type next."""
    from rich.markup import escape
    from rich.text import Text

    from luthier.cli import _print
    from luthier.store import runs
    from luthier.store.database import open_store
    from luthier.training.curve import text

    folder = runs.folder(open_store(), result.run.id)
    console, name = _print.out(), escape(result.model.name)
    if result.reused:
        console.print(
            f"[bold]{name}[/] was trained before with these settings and data (run {result.run.id}); --force trains again"
        )
    else:
        width = min(console.width, 100)
        drawn = text(runs.read_metrics(folder / runs.METRICS), width=width, colour=console.is_terminal)
        console.print(Text.from_ansi(drawn), soft_wrap=True)
    summary = result.summary
    figures = {
        "steps": f"{summary['steps']:,} ({summary['ended']}), kept: step {summary['best_step']}",
        "time": f"{_print.duration(summary['train_s'])} in steps, {summary['tokens_per_s']:,.0f} tokens/s",
        "memory": f"peak {summary['peak_mb']:,.0f} MB",
        **{k: f"{v:.4f}" for k, v in summary.items() if k.startswith("validation_")},
        "size": _print.size(result.model.size_bytes),
        "curve": str(folder / "curve.png"),
    }
    for key, value in figures.items():
        console.print(f"{key:20} {escape(value)}")
    tasks = [escape(task) for task in result.model.meta.get("tasks") or ()]
    if tasks:
        console.print(f"{'tasks':20} {', '.join(tasks)}")
        name = tasks[0]
    console.print(
        f"\nnext: [bold]luthier chat {name}[/]  or  [bold]luthier serve {name}[/]  or  [bold]luthier eval {name} TASK.yaml[/]"
    )
