"""``luthier data inspect``: how a dataset's figures are printed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from luthier.core.dataset import RowProblem
    from luthier.data.inspect import Copies, Inspection, Lengths

BAR = 40
LISTED = 20


def show_inspection(report: Inspection, file: str) -> None:
    """All of it, the most telling first."""
    from rich.markup import escape

    from luthier.cli import _print

    show = _print.show
    show(f"[bold]{escape(file)}[/]  {report.rows:,} rows, kind [bold]{report.kind}[/], format {report.format}")
    fields = ", ".join(
        f"{name}" if count == report.rows else f"{name} ({count:,})" for name, count in report.fields.items()
    )
    show(f"fields: {escape(fields)}")
    show("")
    show(_lengths_table(report.lengths, report.characters))
    show(
        bars(
            [
                (f"{low:,} - {high:,}" if high > low else f"{low:,}", count)
                for low, high, count in report.lengths.histogram
            ]
        )
    )
    if report.labels:
        show(f"\n[bold]{len(report.labels)} {'types of entities' if report.kind == 'entities' else 'labels'}[/]")
        show(bars(_first(list(report.labels.items()), 30)))
    if report.numbers:
        show("\n[bold]targets[/]  " + "   ".join(f"{name} {value:.6g}" for name, value in report.numbers.items()))
    if report.turns:
        show("\n[bold]messages a conversation[/]")
        show(bars(_first([(str(turns), count) for turns, count in report.turns.items()], 15)))
    show(f"\n[bold]languages[/] (guessed on {report.language_sample:,} rows)  {_language_line(report)}")
    show(
        f"[bold]copies[/]  exact {report.duplicates:,}   nearly the same {report.near_duplicates:,}"
        + (f"   several labels {report.conflicts:,}" if report.kind == "labelled" else "")
        + (f"   over {report.context_length:,} tokens {report.overlong:,}" if report.context_length else "")
    )
    _show_copies("texts with several labels", report.conflict_rows)
    _show_copies("copies", report.duplicate_rows)
    _show_copies("nearly the same", report.near_duplicate_rows)
    for source in report.overlong_rows:
        _print.out().print(f"  too long: {source}", markup=False)
    for warning in report.warnings:
        _print.warn(warning)
    show_problems(report.problems)


def _lengths_table(*lengths: Lengths) -> RenderableType:
    from luthier.cli import _print

    columns = ["length in", "mean", "median", "90%", "99%", "longest", "all rows"]
    rows = [
        (x.unit, f"{x.mean:,.1f}", f"{x.p50:,}", f"{x.p90:,}", f"{x.p99:,}", f"{x.max:,}", f"{x.total:,}")
        for x in lengths
    ]
    return _print.table(columns, rows, right=columns[1:])


def _first(rows: list[tuple[str, int]], most: int) -> list[tuple[str, int]]:
    """The first rows, and one for all that follow."""
    rest = sum(count for _, count in rows[most:])
    return [*rows[:most], ("others", rest)] if rest else rows


def bars(rows: list[tuple[str, int]]) -> RenderableType:
    """Names with their counts, shares and bars."""
    from rich.markup import escape
    from rich.table import Table

    most, total = max(count for _, count in rows) or 1, sum(count for _, count in rows) or 1
    made = Table.grid(padding=(0, 1))
    made.add_column(justify="right")
    made.add_column(justify="right")
    made.add_column(justify="right", style="dim")
    made.add_column(style="cyan")
    for label, count in rows:
        eighths = round(count / most * BAR * 8)
        bar = "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]
        made.add_row(escape(label), f"{count:,}", f"{count / total:.1%}", bar or ("▏" if count else ""))
    return made


def _language_line(report: Inspection) -> str:
    total = report.language_sample or 1
    named = [(code, count) for code, count in report.languages.items() if count / total >= 0.01]
    rest = total - sum(count for _, count in named)
    parts = [f"{code} {count / total:.0%}" for code, count in named]
    return ", ".join(parts + ([f"other {rest / total:.1%}"] if rest else []))


def _show_copies(title: str, rows: tuple[Copies, ...]) -> None:
    from luthier.cli import _print

    for copies in rows[:5]:
        lines = ", ".join(source.rsplit(":", 1)[-1] for source in copies.sources)
        labels = f" ({', '.join(f'{k}: {v}' for k, v in copies.labels.items())})" if len(copies.labels) > 1 else ""
        _print.out().print(f"  {title}: lines {lines}{labels}: {copies.text}", markup=False, style="dim")


def show_problems(problems: tuple[RowProblem, ...]) -> None:
    """The first broken rows, and how many more there are."""
    from luthier.cli import _print

    for problem in problems[:LISTED]:
        _print.err().print(f"  {problem}", markup=False)
    if len(problems) > LISTED:
        _print.say(f"  ... and {len(problems) - LISTED:,} more")
