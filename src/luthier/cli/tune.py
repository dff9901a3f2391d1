"""``luthier tune RUN.yaml [key=value ...]``: train a model and register it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from luthier.training.resolve import Job
    from luthier.training.tune import Start, TuneResult

_HOW = {
    "swap": "hot-swapped on its base",
    "merge": "as weights of its own",
    "no": "not possible",
}


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
        from luthier.training.pipeline import is_pipeline
        from luthier.training.tune import tune as train

        if is_pipeline(run):
            if plan:
                _pipeline.show_plan(run, overrides or (), as_json=as_json)
            else:
                with _display() as display:
                    done = _pipeline.run(run, overrides or (), display, force=force)
                _pipeline.report(done, as_json=as_json)
            return
        if plan:
            _plan(run, overrides or (), as_json=as_json)
            return
        with _display() as display:
            result = train(
                run,
                overrides or (),
                metrics=display.metrics,
                progress=display.progress,
                started=display.started,
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
        "serving": "; ".join(f"{engine}: {_HOW[how]}" for engine, how in job.serving.items()),
    }
    if found.checkpointing:
        rows["memory"] += f" ({_again(job)})"
    for name, value in rows.items():
        _print.out().print(f"{name:8} {value}", markup=False)
    if not found.fits:
        _print.warn("that is more memory than is free; train.max_tokens_per_batch=512 needs less")


def _again(job: Job) -> str:
    """Why activations are computed again."""
    why = "as asked" if job.config.train.checkpointing == "on" else "memory would not reach otherwise"
    return f"activations are computed again in the backward pass: {why}"


_SAY_EVERY_S = 10.0


class _Display:
    """What is on the screen while it trains: the plan once, then a bar (or a line every ten seconds, into a pipe)."""

    def __init__(self, bars: Any) -> None:
        self.bars, self.task, self.record = bars, None, dict[str, Any]()
        self.said = 0.0
        self.metric = "validation_loss"

    def started(self, start: Start) -> None:
        """Say what is going to be trained, on what, and where it can be served."""
        from rich.markup import escape

        from luthier.cli import _print

        job = start.job
        self.metric = job.config.train.metric
        share = start.trainable_parameters / max(1, start.total_parameters)
        served = "; ".join(f"{engine}: {_HOW[how]}" for engine, how in job.serving.items())
        lines = {
            "model": f"{escape(job.name)} = {job.method.entry.name}({escape(job.base.name)}), objective {job.objective.entry.name}",
            "data": f"{start.rows:,} rows of {escape(job.splits.train.name)}, {start.validation_rows:,} for validation"
            + (f", {start.dropped:,} too long (left out)" if start.dropped else "")
            + (f", {start.truncated:,} cut short" if start.truncated else ""),
            **_told(start.sources),
            "trains": f"{start.trainable_parameters:,} of {start.total_parameters:,} parameters ({share:.2%})",
            **({"memory": _again(job)} if start.predicted is not None and start.predicted.checkpointing else {}),
            **({"tokens": escape(start.advice.text())} if start.advice is not None else {}),
            "serving": served,
            "run": start.run.id + (f", goes on at step {start.resumed_at}" if start.resumed_at else ""),
        }
        for name, value in lines.items():
            _print.say(f"[bold]{name:8}[/] {value}")
        if start.leaked:
            _print.warn(
                f"{start.leaked:,} validation rows of a source are trained on in another: their losses look too good "
                "(luthier check leakage)"
            )

    def stepping(self, name: str, number: int, of: int) -> None:
        """A step of a pipeline begins: a line, and a bar of its own."""
        from rich.markup import escape

        from luthier.cli import _print

        self.task, self.record = None, {}
        _print.say(f"\n[bold]step {number} of {of}: {escape(name)}[/]")

    def progress(self, stage: str, done: int, total: int) -> None:
        """Move the bar of ``train``; tokenising rows on disk says how far it is, loading is quick and says nothing."""
        import time

        from luthier.cli import _print

        if stage == "tokenise" and (done == total or time.monotonic() - self.said > _SAY_EVERY_S):
            self.said = time.monotonic()
            _print.say(f"tokenised {done:,} of {total:,} rows")
        if stage != "train":
            return
        if self.bars is not None:
            if self.task is None:
                self.task = self.bars.add_task("train", total=total, completed=done, **_fields({}))
            self.bars.update(self.task, completed=done, total=total, **self._fields())
        elif self.record and (done == total or time.monotonic() - self.said > _SAY_EVERY_S):
            self.said = time.monotonic()
            _print.say(f"step {done}/{total}  " + "  ".join(v for v in self._fields().values() if v))

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Keep the newest value of each metric."""
        self.record.update(record)

    def _fields(self) -> dict[str, str]:
        return _fields(self.record, self.metric)


def _told(sources: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """A line on the sources, where there are several."""
    from rich.markup import escape

    said = (f"{escape(name)} {each['rows']:,} rows, {each['share']:.1%}" for name, each in sources.items())
    return {"sources": "; ".join(said)} if sources else {}


def _fields(record: Mapping[str, Any], metric: str = "validation_loss") -> dict[str, str]:
    """The texts beside the bar."""
    said = {"reward": "", "loss": "", "validation": "", "rate": "", "memory": ""}
    if "loss" in record:
        said["loss"] = f"loss {record['loss']:.4f}"
        said["rate"] = f"{record['tokens_per_s']:,.0f} tokens/s"
        said["memory"] = f"peak {record['peak_mb']:,.0f} MB"
    if "reward" in record:
        said["reward"] = f"reward {record['reward']:.4f}"
    if metric in record:
        said["validation"] = f"validation {record[metric]:.4f}"
    return said


@contextmanager
def _display() -> Iterator[_Display]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from luthier.cli import _print

    if not _print.err().is_terminal:
        yield _Display(None)
        return
    columns = ("{task.completed:.0f}/{task.total:.0f}", *(f"{{task.fields[{name}]}}" for name in _fields({})))
    with Progress(
        BarColumn(bar_width=24),
        *(TextColumn(column) for column in columns),
        TimeElapsedColumn(),
        TextColumn("[dim]left"),
        TimeRemainingColumn(),
        console=_print.err(),
    ) as bars:
        yield _Display(bars)


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
