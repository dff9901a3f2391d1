"""What ``luthier tune`` shows while it trains."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.training.resolve import Job
    from luthier.training.tune import Start

HOW = {
    "swap": "hot-swapped on its base",
    "merge": "as weights of its own",
    "no": "not possible",
}


def again(job: Job) -> str:
    """Why activations are computed again."""
    why = "as asked" if job.config.train.checkpointing == "on" else "memory would not reach otherwise"
    return f"activations are computed again in the backward pass: {why}"


_SAY_EVERY_S = 10.0
_RATE_AFTER_S = 0.2


@dataclass
class _Stage:
    """A stage beside the training: when it began and last said something, where it began, and its bar on a terminal."""

    began: float
    said: float
    first: int
    bar: Any


class Display:
    """What is on the screen while it trains: the plan once, then a bar (or a line every ten seconds, into a pipe); a bar too for what takes
    its time before: reading, tokenising, what a reference or a teacher says."""

    def __init__(self, bars: Any) -> None:
        self.bars, self.task, self.record = bars, None, dict[str, Any]()
        self.said = 0.0
        self.stages: dict[str, _Stage] = {}
        self.metric = "validation_loss"

    def started(self, start: Start) -> None:
        """Say what is going to be trained, on what, and where it can be served."""
        from rich.markup import escape

        from luthier.cli import _print

        job = start.job
        self.metric = job.config.train.metric
        share = start.trainable_parameters / max(1, start.total_parameters)
        served = "; ".join(f"{engine}: {HOW[how]}" for engine, how in job.serving.items())
        lines = {
            "model": f"{escape(job.name)} = {job.method.entry.name}({escape(job.base.name)}), objective {job.objective.entry.name}",
            "data": f"{start.rows:,} rows of {escape(job.splits.train.name)}, {start.validation_rows:,} for validation"
            + (f", {start.dropped:,} too long (left out)" if start.dropped else "")
            + (f", {start.truncated:,} cut short" if start.truncated else ""),
            **_told(start.sources),
            "trains": f"{start.trainable_parameters:,} of {start.total_parameters:,} parameters ({share:.2%})",
            **({"memory": again(job)} if start.predicted is not None and start.predicted.checkpointing else {}),
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
        """Move the bar of ``stage``: that of ``train``, or of what comes before and after it, which goes when it is done. Loading says nothing."""
        if stage == "train":
            self._trained(done, total)
        elif stage != "load":
            self._prepared(stage, done, total)

    def _trained(self, done: int, total: int) -> None:
        from luthier.cli import _print

        if self.bars is not None:
            if self.task is None:
                self.task = self.bars.add_task("train", total=total, completed=done, **_fields({}))
            self.bars.update(self.task, completed=done, total=total, **self._fields())
        elif self.record and (done == total or time.monotonic() - self.said > _SAY_EVERY_S):
            self.said = time.monotonic()
            _print.say(f"step {done}/{total}  " + "  ".join(v for v in self._fields().values() if v))

    def _prepared(self, stage: str, done: int, total: int) -> None:
        """A stage beside the training, total 0 where it is not known: a bar with its rate, or a line every ten seconds."""
        from rich.markup import escape

        from luthier.cli import _print

        now = time.monotonic()
        over = bool(total) and done >= total
        if stage not in self.stages:
            if over:
                return
            bar = self.bars.add_task(escape(stage), total=None, **_fields({})) if self.bars is not None else None
            self.stages[stage] = _Stage(now, now, done, bar)
        at = self.stages[stage]
        rate = f"{(done - at.first) / (now - at.began):,.0f}/s" if now - at.began > _RATE_AFTER_S else ""
        if at.bar is not None:
            self.bars.update(at.bar, completed=done, total=total or None, rate=rate)
            if over:
                self.bars.remove_task(at.bar)
        elif now - at.said > _SAY_EVERY_S:
            at.said = now
            of = f" of {total:,}" if total else ""
            _print.say(f"{escape(stage)}: {done:,}{of}  {rate}".rstrip())
        if over:
            del self.stages[stage]

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
def display() -> Iterator[Display]:
    """Bars on stderr while the block runs, or lines where it is no terminal."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from luthier.cli import _print

    if not _print.err().is_terminal:
        yield Display(None)
        return
    columns = (f"{{task.fields[{name}]}}" for name in _fields({}))
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        *(TextColumn(column) for column in columns),
        TimeElapsedColumn(),
        TextColumn("[dim]left"),
        TimeRemainingColumn(),
        console=_print.err(),
    ) as bars:
        yield Display(bars)
