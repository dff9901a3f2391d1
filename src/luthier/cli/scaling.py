"""``luthier scaling SCALING.yaml [key=value ...]``: small trainings, the law of their loss, and the best use of more compute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from luthier.training.scaling import Planned, Report
    from luthier.training.scaling_fit import Fit


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("scaling")(scaling)


def scaling(
    config: Annotated[
        Path | None, typer.Argument(metavar="SCALING.yaml", help="Sections: run (what all have in common) and grid.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value ...]", help="For example bootstrap=0.")
    ] = None,
    points: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Train nothing: fit rows of parameters, tokens and loss that were measured before."
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what would be trained, and how long it takes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fit a scaling law to small trainings, and say which size and how many tokens use a larger budget best."""
    from luthier.cli import _print
    from luthier.core.errors import InputError
    from luthier.training.scaling import scaling as run

    if (config is None) == (points is None):
        raise InputError("give either SCALING.yaml or --points FILE", hint="luthier scaling SCALING.yaml")
    if points is not None:
        _of_points(points, as_json)
        return
    assert config is not None
    if plan:
        _plan(config, overrides or (), as_json)
        return

    def began(planned: Planned, number: int, count: int) -> None:
        said = f"{planned.tokens:,} tokens" if planned.tokens else "the run's own epochs"
        _print.say(f"[bold]{number}/{count}[/] size {planned.size}, {said}")

    with _print.progress() as progress:
        report = run(config, overrides or (), progress=progress, began=began)
    if as_json:
        _print.show_json(report.as_dict())
    else:
        show_report(report)


def show_report(report: Report) -> None:
    """The runs, the law and the advice."""
    from rich.markup import escape

    from luthier.cli import _print
    from luthier.training.scaling_plot import text

    rows = [
        (
            c.size,
            f"{c.parameters:,}",
            f"{c.tokens:,}",
            f"{c.tokens / c.parameters:.2g}",
            f"{c.loss:.4f}",
            _print.duration(c.seconds),
            escape(c.model),
        )
        for c in report.cells
    ]
    columns = ["size", "parameters", "tokens", "tokens/parameter", "loss", "time", "model"]
    _print.show(_print.table(columns, rows, right=columns[1:6]))
    console = _print.out()
    if report.cells:
        drawn = text(report, width=min(console.width, 100), colour=False)
        console.print(drawn, markup=False, highlight=False, soft_wrap=True)
    if report.fit is None:
        _print.warn(escape(report.why))
    else:
        for line in said(report.fit):
            console.print(escape(line), soft_wrap=True)
    for best in report.optima:
        spread = (
            f" (95%: {_count(best.low)} to {_count(best.high)})"
            if best.low is not None and best.high is not None
            else ""
        )
        console.print(
            f"with {best.compute:.2g} FLOP: {_count(best.parameters)} parameters{spread} on {_count(best.tokens)} tokens, "
            f"{best.tokens / best.parameters:.2g} a parameter; loss about {best.loss:.3f}",
            soft_wrap=True,
        )
    for note in report.notes:
        _print.warn(escape(note))
    if report.plot:
        console.print(f"plot {escape(report.plot)}", soft_wrap=True)


def said(fit: Fit) -> list[str]:
    """The law in one line, and its constants with their intervals."""
    c = fit.constants
    if fit.law == "parameters and tokens":
        law = f"L = {c['E']:.3f} + {c['A']:.4g} / N^{c['alpha']:.3f} + {c['B']:.4g} / D^{c['beta']:.3f}"
    else:
        letter = "N" if fit.law == "parameters" else "D"
        law = f"L = ({c['X_c']:.4g} / {letter})^{c['alpha']:.4f}"
    spread = ", ".join(f"{name} {low:.3g} to {high:.3g}" for name, (low, high) in fit.intervals.items())
    return [f"law    {law}   (largest error {fit.error:.2%})", *([f"95%    {spread}"] if spread else [])]


def _count(number: float) -> str:
    for size, sign in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{sign}"
    return f"{number:.0f}"


def _plan(config: Path, overrides: Sequence[str], as_json: bool) -> None:
    from luthier.cli import _print
    from luthier.store.database import open_store
    from luthier.training.resolve import resolve
    from luthier.training.scaling import predict, read_grid

    store = open_store()
    rows: list[dict[str, Any]] = []
    for planned in read_grid(config, overrides)[1]:
        job = resolve(planned.config, (), store)
        found = predict(store, job)
        rows.append(
            {
                "size": planned.size,
                "parameters": int(job.base.meta["parameters"]),
                "tokens": found.tokens,
                "seconds": found.seconds,
                "peak_mb": found.peak_mb,
            }
        )
    if as_json:
        _print.show_json({"trainings": rows, "seconds": sum(row["seconds"] for row in rows)})
        return
    cells = [
        (
            r["size"],
            f"{r['parameters']:,}",
            f"{r['tokens']:,}",
            _print.duration(r["seconds"]),
            f"{r['peak_mb']:,.0f} MB",
        )
        for r in rows
    ]
    columns = ["size", "parameters", "tokens", "time", "peak"]
    _print.show(_print.table(columns, cells, right=columns[1:]))
    _print.say(f"{len(rows)} trainings, about {_print.duration(sum(row['seconds'] for row in rows))}")


def _of_points(path: Path, as_json: bool) -> None:
    from luthier.cli import _print
    from luthier.training.scaling_fit import fit as fit_points
    from luthier.training.scaling_fit import read_points

    points = read_points(path)
    found = fit_points(points)
    largest = max(point.compute for point in points)
    optima = [found.optimum(scale * largest) for scale in (1, 10, 100)] if found.law == "parameters and tokens" else []
    if as_json:
        from dataclasses import asdict

        _print.show_json({"fit": found.as_dict(), "optima": [asdict(best) for best in optima]})
        return
    for line in said(found):
        _print.out().print(line, markup=False, soft_wrap=True)
    for best in optima:
        _print.out().print(
            f"with {best.compute:.2g} FLOP: {_count(best.parameters)} parameters on {_count(best.tokens)} tokens; loss about {best.loss:.3f}",
            soft_wrap=True,
        )
