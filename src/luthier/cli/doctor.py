"""``luthier doctor``: what will be fast here, what will not, and what to do about it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from luthier.models.machine import Finding, Report

_MARKS = {"good": "[green]✓[/]", "fair": "[yellow]●[/]", "poor": "[red]▲[/]", "broken": "[bold red]✗[/]"}
_WORDS = {
    "good": "[green]fast here[/]",
    "fair": "[yellow]works[/]",
    "poor": "[red]slow here[/]",
    "broken": "[red]broken[/]",
}


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def doctor(
        port: Annotated[int, typer.Option(help="The port that luthier serve would use.", min=1, max=65535)] = 8000,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Look at CPU, memory, GPU, disk, software, store, models and ports. Exits with 1 when something is broken."""
        from luthier.cli import _print
        from luthier.models.machine import examine

        report = examine(port=port)
        report = replace(report, findings=(*report.findings, _sandbox()))
        if as_json:
            _print.show_json(report.as_dict())
        else:
            _draw(report)
        if report.broken:
            raise typer.Exit(1)


def _sandbox() -> Finding:
    """Where generated programs run, and what they are kept from here."""
    from luthier.models.machine import Finding
    from luthier.scorers._sandbox import describe

    sandbox = describe()
    if not sandbox.held:
        return Finding("Sandbox", "generated programs cannot run", "poor", "; ".join(sandbox.missing))
    held = f"generated programs are kept from: {', '.join(sandbox.held)}"
    return Finding("Sandbox", held, "fair" if sandbox.missing else "good", "; ".join(sandbox.missing))


def _draw(report: Report) -> None:
    from rich.markup import escape

    from luthier.cli import _print

    rows = []
    for each in report.findings:
        advice = f"\n[dim]{escape(each.advice)}[/]" if each.advice else ""
        rows.append((_MARKS[each.verdict], f"[bold]{each.topic}[/]", escape(each.found) + advice))
    _print.show(_print.table(["", "", "here"], rows, title=f"This machine  ({report.machine.system})"))
    work = [
        (
            _MARKS[e.verdict],
            e.work,
            "[red]not here[/]" if e.verdict == "poor" and not e.estimate else _WORDS[e.verdict],
            e.why,
        )
        for e in report.expectations
    ]
    _print.show(_print.table(["", "work", "verdict", ""], work, title="What to expect"))
    wrong = sum(each.verdict == "broken" for each in report.findings)
    things = "1 thing" if wrong == 1 else f"{wrong} things"
    _print.show(f"[bold red]{things} to put right first[/]" if wrong else "[bold green]Ready.[/]")
