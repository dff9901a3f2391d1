"""``luthier show RUN``: what a run was told, what it did, and each of its records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from luthier.core.run import Run
    from luthier.store.database import Store


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def show(
        run: Annotated[
            str, typer.Argument(metavar="[RUN]", help="Id, start of the id, name, or latest.", show_default=True)
        ] = "latest",
        records: Annotated[bool, typer.Option("--records", help="Print the records of an evaluation.")] = False,
        wrong: Annotated[
            bool, typer.Option("--wrong", help="Print the wrong answers of an evaluation, the surest mistakes first.")
        ] = False,
        limit: Annotated[int, typer.Option(min=1, help="How many records.")] = 20,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Show a run: a tuning's configuration and curve, an evaluation's scores and records, a tournament's board."""
        from luthier.core.errors import InputError
        from luthier.evaluation.records import find
        from luthier.store.database import open_store
        from luthier.store.runs import recover

        store = open_store()
        recover(store)
        found = find(store, run)
        if found.kind != "eval" and (wrong or records):
            raise InputError(
                f"run {found.id} is of kind {found.kind}; --records and --wrong are for eval runs",
                hint="luthier runs --kind eval",
            )
        if as_json:
            _show_json(store, found, wrong, records, limit)
        elif found.kind == "eval":
            _show_eval(store, found, wrong, records, limit)
        elif found.kind == "tune":
            _show_tune(store, found)
        elif found.kind == "scaling":
            _show_scaling(found)
        else:
            _show_tournament(store, found)


def _config(store: Store, run: Run) -> dict[str, Any]:
    import json

    from luthier.store.runs import folder

    found: dict[str, Any] = json.loads((folder(store, run.id) / "config.json").read_text(encoding="utf-8"))
    return found


def _show_json(store: Store, run: Run, wrong: bool, records: bool, limit: int) -> None:
    from dataclasses import asdict

    from luthier.cli import _print

    if wrong or records:
        _print.show_json([record.as_dict() for record in _records(store, run, wrong)[:limit]])
    else:
        _print.show_json({**asdict(run), "config": _config(store, run)})


def _records(store: Store, run: Run, wrong: bool) -> list[Any]:
    from luthier.evaluation.records import load_records, wrong_first

    found = load_records(store, run)
    if not wrong:
        return found
    primary = run.summary.get("primary") or next(iter(found[0].scores), "") if found else ""
    return wrong_first(found, primary, lower_is_better=primary in run.summary.get("lower_is_better", ()))


def _show_eval(store: Store, run: Run, wrong: bool, records: bool, limit: int) -> None:
    from luthier.cli import _print, _results
    from luthier.evaluation.records import load_records
    from luthier.evaluation.result import EvalResult

    if wrong or records:
        found = _records(store, run, wrong)
        primary = run.summary.get("primary") or (next(iter(found[0].scores), "") if found else "")
        _results.show_records(found[:limit], primary)
        what = "wrong answers" if wrong else "records"
        _print.say(f"[dim]{min(limit, len(found)):,} of {len(found):,} {what}; more with --limit[/]")
        return
    if run.status == "done":
        _results.show_result(EvalResult.from_run(run, load_records(store, run)))
        return
    _unfinished(run)
    _print.show(
        f"{len(load_records(store, run)):,} of {_config(store, run)['values']['examples']:,} examples are answered"
    )


def _unfinished(run: Run) -> None:
    from rich.markup import escape

    from luthier.cli import _print

    why = run.summary.get("error", "")
    _print.show(
        f"{run.id}  {run.kind} {escape(run.name)}: [yellow]{run.status}[/]" + (f", {escape(str(why))}" if why else "")
    )
    if run.status != "running":
        _print.say("[dim]the same command again goes on where it stopped[/]")


def _show_tune(store: Store, run: Run) -> None:
    from rich.markup import escape
    from rich.text import Text

    from luthier.cli import _print, _results
    from luthier.store.runs import METRICS, folder, read_metrics
    from luthier.training.curve import text

    config = _config(store, run)
    origins = config["origins"]
    rows = [
        (escape(key), escape(_results.plain(value)), f"[dim]{escape(_origin(key, origins))}[/]")
        for key, value in _flat(config["values"])
    ]
    _print.show(_print.table(["key", "value", "from"], rows, title=f"{run.id}  {escape(run.name)}  {run.status}"))
    metrics = read_metrics(folder(store, run.id) / METRICS)
    console = _print.out()
    if any("loss" in record for record in metrics):
        drawn = text(metrics, width=min(console.width, 100), colour=console.is_terminal)
        console.print(Text.from_ansi(drawn), soft_wrap=True)
    if run.status != "done":
        _unfinished(run)
        return
    figures = [(escape(key), escape(_results.plain(value))) for key, value in run.summary.items()]
    _print.show(_print.table(["figure", "value"], figures))


def _origin(key: str, origins: dict[str, str]) -> str:
    """Where a value came from: its own origin, or that of the section it was written in."""
    while key:
        if key in origins:
            return origins[key]
        key = key.rpartition(".")[0]
    return "default"


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            out += _flat(value, f"{prefix}{key}.")
        elif value not in (None, {}, []):
            out.append((prefix + key, value))
    return out


def _show_scaling(run: Run) -> None:
    from luthier.cli import _print
    from luthier.cli.scaling import show_report
    from luthier.training.scaling import Report

    if "report" not in run.summary:
        _print.say(f"{run.id} is {run.status}: the same luthier scaling command goes on")
        return
    show_report(Report.from_dict(run.summary["report"]))


def _show_tournament(store: Store, run: Run) -> None:
    from luthier.cli import _results
    from luthier.store.runs import folder
    from luthier.tournament.board import Board

    if run.status == "done":
        _results.show_board(Board.load(folder(store, run.id)))
    else:
        _unfinished(run)
