"""``luthier tune`` with a YAML of several steps: what is printed of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.training.pipeline import PipelineResult
    from luthier.training.tune import TuneResult


def run(file: Path, overrides: Sequence[str], display: Any, *, force: bool) -> PipelineResult:
    """All steps, on ``display``."""
    from luthier.training.pipeline import pipeline

    return pipeline(
        file,
        overrides,
        metrics=display.metrics,
        progress=display.progress,
        started=display.started,
        stepping=display.stepping,
        resume=not force,
        replace=force,
    )


def report(done: PipelineResult, *, as_json: bool) -> None:
    """What each step made, what it measured, and how long it took."""
    from rich.markup import escape

    from luthier.cli import _print

    if as_json:
        steps = [
            {
                "step": step.name,
                "run": step.result.run.id,
                "model": step.result.model.name,
                "reused": step.result.reused,
                "seconds": round(step.seconds, 3),
                **step.result.summary,
            }
            for step in done.steps
        ]
        _print.show_json({"model": done.model.name, "steps": steps})
        return
    rows = []
    for step in done.steps:
        summary, result = step.result.summary, step.result
        time = "done before" if result.reused else _print.duration(step.seconds)
        measured = _measured(result)
        rows.append(
            (
                step.name,
                escape(result.model.name),
                result.model.meta["objective"],
                f"{summary['steps']:,}",
                measured,
                time,
            )
        )
    columns = ("step", "result", "objective", "steps", "measured", "time")
    _print.show(_print.table(columns, rows, right=("steps", "time")))
    name = escape(done.model.name)
    _print.out().print(f"\nnext: [bold]luthier chat {name}[/]  or  [bold]luthier lineage {name}[/]")


def _measured(result: TuneResult) -> str:
    """The figures that say most: of the kept weights' validation, else of the last step of training."""
    from luthier.store import runs
    from luthier.store.database import open_store

    found = {key: value for key, value in result.summary.items() if key.startswith("validation_")}
    prefix = "validation_"
    if not found:
        records = runs.read_metrics(runs.folder(open_store(), result.run.id) / runs.METRICS)
        found, prefix = (records[-1] if records else {}), ""
    told = [f"{prefix}{key}" for key in ("accuracy", "macro_f1", "reward", "loss") if f"{prefix}{key}" in found]
    return ", ".join(f"{key} {found[key]:.4f}" for key in told[:2])


def show_plan(file: Path, overrides: Sequence[str], *, as_json: bool) -> None:
    """What each step would take."""
    from luthier.cli import _print
    from luthier.tournament import figures
    from luthier.training.pipeline import plan

    steps = plan(file, overrides)
    if as_json:
        told = [
            {
                "step": step.name,
                "name": step.result.model.name if step.result else step.job.name,
                "reused": step.result is not None,
                "serving": dict(step.job.serving),
                "predicted": step.predicted.as_dict() if step.predicted else None,
            }
            for step in steps
        ]
        _print.show_json({"steps": told})
        return
    rows: list[tuple[str, ...]] = []
    for step in steps:
        job, found = step.job, step.predicted
        what = (f"{job.method.entry.name}({job.base.name})", job.objective.entry.name)
        if found is None:
            rows.append((step.name, *what, "", "", "", "done before" if step.result else "nothing is trained"))
            continue
        memory = figures.megabytes(found.peak_mb) + ("" if found.fits else " (more than is free)")
        rows.append(
            (
                step.name,
                *what,
                f"{found.steps:,}",
                f"{found.tokens:,}",
                memory,
                f"about {figures.duration(found.seconds)}",
            )
        )
    columns = ("step", "trains", "objective", "steps", "tokens", "memory", "time")
    _print.show(_print.table(columns, rows, right=("steps", "tokens", "memory", "time")))
    total = sum(step.predicted.seconds for step in steps if step.predicted)
    _print.show(f"about {figures.duration(total)} in all")
