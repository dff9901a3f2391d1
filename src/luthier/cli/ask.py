"""``luthier ask``: questions to a database, answered in words, with the query, its rows and a chart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from luthier.apps.sql.ask import Answer, Attempt
    from luthier.core.engine import Engine

_SHOWN = 20


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("ask")(ask)


def ask(
    questions: Annotated[
        list[str], typer.Argument(metavar="QUESTION...", help="Later ones follow up on earlier ones.")
    ],
    db: Annotated[
        str,
        typer.Option(
            help="A SQLite or DuckDB file, CSV, Parquet, XLSX or JSON files or a folder of them, or a URL (postgresql, mysql)."
        ),
    ],
    *,
    model: Annotated[str, typer.Option(help="The model that writes the query.")] = "smollm2-135m",
    engine: Annotated[str, typer.Option(help="auto, torch, llamacpp, openai or fake.")] = "auto",
    notes: Annotated[Path | None, typer.Option(help="YAML: table: text, table.column: text.")] = None,
    rows: Annotated[int, typer.Option(help="The most rows that are read.")] = 1000,
    timeout: Annotated[float, typer.Option(help="The most seconds that a query may take.")] = 30.0,
    memory: Annotated[int, typer.Option(help="The most MB that a query, and tables from files, may take.")] = 1024,
    repairs: Annotated[int, typer.Option(help="How often a query that fails is given back to the model.")] = 2,
    samples: Annotated[int, typer.Option(help="Values of each column that the model is shown; 0 is none.")] = 3,
    private: Annotated[
        list[str] | None, typer.Option(help="Columns whose values the model is not shown beforehand (email, staff.*).")
    ] = None,
    constrained: Annotated[
        bool | None,
        typer.Option(
            "--constrained/--free", help="Only the schema's names can be written. Default: where the engine can."
        ),
    ] = None,
    words: Annotated[bool, typer.Option("--words/--no-words", help="Let the model put the rows into words.")] = True,
    sql_only: Annotated[
        bool, typer.Option("--sql-only", help="Write and check the query, and print it; it is not run.")
    ] = False,
    chart: Annotated[
        Path | None, typer.Option(help="Draw the last result to this .png or .svg file, if a chart suits.")
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show what was tried before, and the tables that the model saw.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: an object, or a list for several questions.")
    ] = False,
) -> None:
    """Ask a database in words. It is only read: one SELECT, in a process of its own with limits of time, rows and memory."""
    from luthier.apps.sql.ask import Asking, NoQueryError
    from luthier.apps.sql.ask import ask as answer_from
    from luthier.apps.sql.chart import check_path
    from luthier.apps.sql.connect import Limits, connect
    from luthier.apps.sql.notes import check_notes, read_notes
    from luthier.cli._print import show_json

    if chart is not None:
        check_path(chart)
    limits = Limits(timeout_s=timeout, rows=rows, memory_mb=memory)
    told = read_notes(notes) if notes is not None else {}
    options = Asking(notes=told, repairs=repairs, words=words, run=not sql_only, constrained=constrained)
    answers: list[Answer] = []
    with connect(db, limits, samples=samples, private=private or ()) as opened:
        check_notes(told, opened.schema())
        writer = _opened(model, engine)
        try:
            for question in questions:
                try:
                    answers.append(answer_from(question, opened, writer, history=answers, **vars(options)))
                except NoQueryError as error:
                    if verbose:
                        _show_attempts(error.attempts)
                    raise
                if not as_json:
                    _show(answers[-1], verbose=verbose, sql_only=sql_only)
        finally:
            writer.close()
    if as_json:
        found = [each.as_dict() for each in answers]
        show_json(found[0] if len(found) == 1 else found)
    if chart is not None:
        _draw(answers[-1], chart)


def _opened(model: str, engine: str) -> Engine:
    from luthier.strategies._load import load

    return load(model, engine=engine, raw=True)


def _show(answer: Answer, *, verbose: bool, sql_only: bool) -> None:
    from rich.markup import escape

    from luthier.apps.sql.chart import bars
    from luthier.cli._print import out, say, show, table

    if sql_only:
        out().print(answer.sql, markup=False)
        return
    if verbose:
        say(f"[dim]tables shown: {escape(', '.join(answer.tables))}[/]")
        _show_attempts(answer.attempts[:-1])
    out().print(answer.text, markup=False)
    out().print(f"\n{answer.sql}\n", markup=False, style="cyan")
    result = answer.result
    if result.rows:
        shown = [["" if cell is None else escape(str(cell)) for cell in row] for row in result.rows[:_SHOWN]]
        numeric = [
            name
            for at, name in enumerate(result.columns)
            if all(isinstance(row[at], int | float) for row in result.rows[:_SHOWN])
        ]
        show(table([escape(name) for name in result.columns], shown, right=numeric))
        for line in bars(result):
            out().print(line, markup=False)
    more = f", {_SHOWN} shown" if len(result.rows) > _SHOWN else ""
    cut = "; there are more (--rows)" if result.cut else ""
    say(f"[dim]{len(result.rows)} rows in {result.took_s:.2f} s{more}{cut}[/]")


def _show_attempts(attempts: tuple[Attempt, ...]) -> None:
    from rich.markup import escape

    from luthier.cli._print import say

    for number, each in enumerate(attempts, 1):
        say(f"[dim]attempt {number}: {escape(each.sql) or 'nothing'}\n  {escape(each.error)}[/]")


def _draw(answer: Answer, path: Path) -> None:
    from luthier.apps.sql.chart import draw
    from luthier.cli._print import say, warn

    if draw(answer.result, path, answer.question) is None:
        warn("no chart suits this result; none was drawn")
    else:
        say(f"chart: {path}")
