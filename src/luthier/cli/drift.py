"""``luthier drift``: did what is asked, answered and done change, or is it chance?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from luthier.evaluation.drift_report import Drift


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("drift")(drift_command)


def drift_command(
    model: Annotated[str, typer.Argument(help="Whose traces.")],
    *,
    since: Annotated[
        str, typer.Option(help="The window that is looked at begins then: 24h, 7d ago, a date, or an ISO time.")
    ] = "7d",
    until: Annotated[str | None, typer.Option(help="And ends then; default: now.")] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="FROM..TO",
            help="What it is compared with: times, or a file of examples; default: as long a stretch right before.",
        ),
    ] = None,
    embedder: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A model that tells which prompts are alike; default: their words do."),
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    route: Annotated[str | None, typer.Option(help="Only of this route.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write a picture to this file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as a page to this file.")] = None,
    fail: Annotated[bool, typer.Option("--fail", help="Exit with 1 when something changed.")] = False,
    seed: Annotated[int, typer.Option(help="Another seed shuffles otherwise.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare a model's traffic with an earlier stretch: prompts, answers, and what people do.

    Changes are told from chance by shuffling users between the two; all signals together raise a false alarm in at most 5% of reports.
    """
    from luthier.cli import _print
    from luthier.evaluation.drift import drift

    report = drift(
        model, since=since, until=until, baseline=baseline, embedder=embedder, tenant=tenant, route=route, seed=seed
    )
    if as_json:
        _print.show_json(report.as_dict())
    else:
        _show(report)
    if png is not None or html is not None:
        from luthier.evaluation.drift_page import save_page, save_picture

        for path, save in ((png, save_picture), (html, save_page)):
            if path is not None:
                save(report, path)
                _print.say(f"wrote {path}")
    if fail and report.shifted:
        raise typer.Exit(1)


def _show(report: Drift) -> None:
    from rich.markup import escape

    from luthier.cli import _print
    from luthier.evaluation.drift_page import interval_text

    for label, window in (("baseline", report.baseline), ("now     ", report.current)):
        _print.show(
            f"[bold]{label}[/]  {escape(str(window['name']))}: {window['requests']:,} requests of {window['users']:,} users or sessions"
        )
    rows = []
    for signal in report.signals:
        tested = signal.effect is not None
        verdict = (
            "[bold red]changed[/]" if signal.shifted else "[green]no change seen[/]" if tested else "[dim]not tested[/]"
        )
        rows.append((
            signal.group, signal.name, escape(signal.baseline), escape(signal.now),
            f"{signal.measure} {interval_text(signal)}" if tested else "",
            f"{signal.by_chance:.3g}" if signal.by_chance is not None else "",
            f"{signal.p_adjusted:.3g}" if signal.p_adjusted is not None else "",
            verdict, f"[dim]{escape(signal.note)}[/]",
        ))  # fmt: skip
    columns = ("", "signal", "baseline", "now", "effect (95%)", "chance", "p (Holm)", "", "remark")
    _print.show(_print.table(columns, rows, right=("chance", "p (Holm)")))
    if report.separability is not None:
        value, low, high = report.separability
        _print.show(
            f"A classifier tells the prompts of the windows apart with AUC {value:.2f} ({low:.2f} to {high:.2f}); 0.5 is not at all."
        )
    _print.show(f"A change of a share near one half by {report.detectable:.0%} would be seen four times in five.")
    for note in report.notes:
        _print.show(escape(note))
    if report.new and any(signal.shifted for signal in report.signals if signal.group == "prompts"):
        _print.show("\n[bold]prompts least like those of the baseline[/]")
        for text in report.new:
            _print.show(f"  {escape(' '.join(text.split())[:150])}")
