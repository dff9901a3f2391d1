"""``luthier runs``: what has been done, newest first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from luthier.core.run import Run

_COLOURS = {"running": "cyan", "done": "green", "failed": "red", "interrupted": "yellow"}


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def runs(
        kind: Annotated[str | None, typer.Option(help="Only tune, eval or tournament.")] = None,
        limit: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """List runs: tunings, evaluations and tournaments."""
        from dataclasses import asdict
        from typing import get_args

        from rich.markup import escape

        from luthier.cli import _print
        from luthier.core.errors import InputError
        from luthier.core.run import RunKind
        from luthier.store.database import open_store
        from luthier.store.runs import list_runs, recover

        if kind is not None and kind not in get_args(RunKind):
            raise InputError(f"--kind must be one of {', '.join(get_args(RunKind))}; got {kind!r}")
        store = open_store()
        recover(store)
        found = list_runs(store, kind, limit)  # type: ignore[arg-type]
        if as_json:
            _print.show_json([asdict(run) for run in found])
            return
        if not found:
            _print.say("no runs yet; begin with: luthier tune RUN.yaml   or   luthier tournament TASK.yaml")
            return
        rows = [
            (
                run.id,
                run.kind,
                f"[{_COLOURS[run.status]}]{run.status}[/]",
                escape(run.name),
                run.created_at[:16].replace("T", " "),
                escape(_outcome(run)),
            )
            for run in found
        ]
        _print.show(_print.table(["run", "kind", "status", "name", "started (UTC)", "outcome"], rows))


def _outcome(run: Run) -> str:
    """The one figure or reason of a run that matters most."""
    summary = run.summary
    if "error" in summary:
        return str(summary["error"]).split("\n", 1)[0][:80]
    if run.kind == "eval" and "scores" in summary:
        primary = summary["scores"][summary["primary"]]
        return f"{summary['primary']} {primary['value']:.3f} [{primary['low']:.3f}, {primary['high']:.3f}]"
    if run.kind == "tournament" and "verdict" in summary:
        return f"keep {summary['verdict']['keep']}" if summary["verdict"]["keep"] else "no entrant finished"
    if run.kind == "scaling" and "report" in summary:
        fit = summary["report"]["fit"]
        return f"{len(summary['report']['cells'])} trainings" + (f", law of {fit['law']}" if fit else ", no law")
    if run.kind == "tune" and "steps" in summary:
        loss = summary.get("validation_loss")
        return f"{summary['steps']:,} steps" + (f", validation loss {loss:.4f}" if loss is not None else "")
    return ""
