"""Printing shared by all commands: two consoles, tables, JSON, and progress bars.

Results go to stdout, everything that is said on the way to stderr. Without a terminal there are no colours, no boxes that move,
and wide tables are not folded, so that a pipe or a log file reads well.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from luthier.core.run import Progress

_PIPE_WIDTH = 160
_PLAIN_EVERY_S = 10.0
_IN_BYTES = ("download", "unpack")


def out() -> Console:
    """The console on stdout: results."""
    return _console(sys.stdout)


def err() -> Console:
    """The console on stderr: progress, remarks, warnings."""
    return _console(sys.stderr)


@cache
def _console(stream: TextIO) -> Console:
    from rich.console import Console

    terminal = stream.isatty()
    return Console(file=stream, width=None if terminal else _PIPE_WIDTH, highlight=False, soft_wrap=not terminal)


def say(text: str) -> None:
    """A remark on stderr; rich markup is read."""
    err().print(text)


def warn(text: str) -> None:
    """A warning on stderr."""
    from rich.markup import escape

    err().print(f"[yellow]warning:[/] {escape(text)}")


def show(what: RenderableType) -> None:
    """A result on stdout: a rich table, tree, panel or marked-up text."""
    out().print(what)


def show_json(value: Any) -> None:
    """A result on stdout as JSON, indented, without colours."""
    from luthier.store.database import to_json

    sys.stdout.write(to_json(value, indent=2) + "\n")


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    title: str | None = None,
    right: Iterable[str] = (),
    cut: Iterable[str] = (),
) -> RenderableType:
    """A table; columns named in ``right`` are aligned right, those in ``cut`` end in … where the terminal is too narrow (others
    are folded). Cells that are text are read as rich markup."""
    from rich import box
    from rich.table import Table

    right, cut = set(right), set(cut)
    made = Table(
        title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", header_style="bold", pad_edge=False
    )
    for column in columns:
        made.add_column(
            column,
            justify="right" if column in right else "left",
            overflow="ellipsis" if column in cut else "fold",
            no_wrap=column in cut,
            max_width=max(out().width // 6, 12) if column in cut and out().is_terminal else None,
        )
    for row in rows:
        made.add_row(*("" if cell is None else cell if _renders(cell) else str(cell) for cell in row))
    return made


def _renders(cell: Any) -> bool:
    return isinstance(cell, str) or hasattr(cell, "__rich_console__") or hasattr(cell, "__rich__")


def size(count: float) -> str:
    """Bytes for people: ``92.9 MB`` (powers of ten)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5 or (unit == "B" and count < 1000):
            return f"{count:.0f} {unit}" if unit == "B" or abs(count) >= 99.95 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Time for people: ``0.42 s``, ``12.3 s``, ``3 min 05 s``, ``2 h 04 min``."""
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@contextmanager
def progress() -> Iterator[Progress]:
    """Draws ``core.run.Progress`` calls on stderr while the block runs: a bar a stage with rate and time left.

    A stage that starts with ``download`` or ``unpack`` counts bytes. A total of 0 is an unknown one. Without a terminal there is a plain
    line when a stage begins and ends, and every ten seconds between.
    """
    if err().is_terminal:
        with _bars() as bars:
            yield _Drawn(bars)
    else:
        plain = _Plain()
        try:
            yield plain
        finally:
            plain.end()


def _bars() -> Bars:
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Made

    return Made(
        SpinnerColumn(finished_text="[green]✓[/]"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[amount]}", justify="right"),
        TextColumn("[cyan]{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("[dim]left"),
        TimeRemainingColumn(),
        console=err(),
        transient=False,
    )


class _Drawn:
    """One bar a stage."""

    def __init__(self, bars: Bars) -> None:
        self.bars = bars
        self.stages: dict[str, tuple[TaskID, float, int]] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        from rich.markup import escape

        if stage not in self.stages:
            task = self.bars.add_task(escape(stage), total=total or None, amount="", rate="")
            self.stages[stage] = (task, time.monotonic(), done)
        task, began, first = self.stages[stage]
        self.bars.update(
            task,
            completed=done,
            total=total or None,
            amount=_amount(stage, done, total),
            rate=_rate(stage, done - first, time.monotonic() - began),
        )


class _Plain:
    """Lines for logs and pipes."""

    def __init__(self) -> None:
        self.stage = ""
        self.began = self.said = 0.0
        self.first = self.done = self.total = 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        at = time.monotonic()
        if stage != self.stage:
            self.end()
            self.stage, self.began, self.said, self.first = stage, at, at, done
            self.done, self.total = done, total
            if done < total or not total:
                err().print(f"{stage} …", markup=False)
            return
        self.done, self.total = done, total
        if at - self.said >= _PLAIN_EVERY_S and not (total and done >= total):
            self.said = at
            self._line("")

    def end(self) -> None:
        """Say how the current stage ended."""
        if self.stage:
            self._line(f" in {duration(time.monotonic() - self.began)}")
            self.stage = ""

    def _line(self, end: str) -> None:
        rate = _rate(self.stage, self.done - self.first, time.monotonic() - self.began)
        amount = _amount(self.stage, self.done, self.total)
        said = "  ".join(part for part in (f"{self.stage}: {amount}", rate) if part)
        err().print(said + end, markup=False)


def _amount(stage: str, done: int, total: int) -> str:
    if stage.startswith(_IN_BYTES):
        return f"{size(done)} of {size(total)}" if total else size(done)
    return f"{done:,}/{total:,}" if total else f"{done:,}"


def _rate(stage: str, done: int, seconds: float) -> str:
    if done <= 0 or seconds < 0.2:
        return ""
    rate = done / seconds
    if stage.startswith(_IN_BYTES):
        return f"{size(rate)}/s"
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2f}/s"
