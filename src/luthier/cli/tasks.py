"""``luthier tasks``: the benchmarks that come with Luthier, and how each one asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from luthier.core.task import Task
    from luthier.tasks._describe import Description


def register(app: typer.Typer) -> None:
    """Add the commands."""
    tasks = typer.Typer(help="Benchmarks: list them, or show how one asks.", invoke_without_command=True)
    app.add_typer(tasks, name="tasks")

    @tasks.callback()
    def list_all(
        context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
    ) -> None:
        """List the benchmarks: kind, worked examples, scorers, licence and where their data are."""
        if context.invoked_subcommand is not None:
            return
        from dataclasses import asdict

        from rich.markup import escape

        from luthier.cli import _print
        from luthier.tasks._describe import benchmarks, describe

        found = [describe(name) for name in benchmarks()]
        if as_json:
            _print.show_json([asdict(one) for one in found])
            return
        rows = [
            (
                f"[bold]{one.name}[/]",
                one.kind,
                one.shots or "",
                escape(", ".join(dict.fromkeys(each.split(" ")[0] for each in one.scorers))),
                escape(one.hub or "none needed"),
                escape(one.licence),
            )
            for one in found
        ]
        columns = ["name", "kind", "shots", "scorers", "data", "licence"]
        fit = len(columns) if _print.out().width >= 110 else -2
        _print.show(_print.table(columns[:fit], [row[:fit] for row in rows], right=["shots"], cut=["licence"]))
        _print.say("one of them in full: luthier tasks show NAME   run it: luthier eval MODEL NAME data=PATH")

    @tasks.command()
    def show(
        name: Annotated[str, typer.Argument(help="A benchmark, for example mmlu.")],
        overrides: Annotated[
            list[str] | None,
            typer.Argument(metavar="[KEY=VALUE]...", help="Its options; with data=PATH one question is shown too."),
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Show a benchmark: prompt, scorers, source, options, and with its data one question to the letter."""
        from dataclasses import asdict

        from luthier.cli import _print
        from luthier.tasks._describe import describe, question
        from luthier.tasks._load import load_task

        told = describe(name)
        task = load_task(name, overrides or ()) if overrides or not told.hub else None
        if as_json:
            shown = asdict(told)
            if task is not None:
                example, asked = question(task)
                shown["example"] = {"prompt": asked, "choices": example.choices, "target": example.target}
            _print.show_json(shown)
            return
        _show(told)
        if task is not None:
            _show_question(task)


def _show(told: Description) -> None:
    from rich.markup import escape

    from luthier.cli import _print

    _print.out().print(_plain(told.about) + "\n", markup=False)
    facts = {
        "kind": told.kind,
        "shots": f"{told.shots} from the {told.pool} part" if told.shots else "none",
        "scorers": ", ".join(told.scorers),
        "part asked": told.part if told.hub else "",
        "fields": told.fields,
        "hub": told.hub,
        "paper": told.paper,
        "licence": told.licence,
        "lm-eval": told.matches or "no such task",
    }
    for key, value in facts.items():
        if value:
            _print.show(f"[bold]{key:<11}[/] {escape(value)}")
    _print.out().print("\n" + _plain(told.options_about), markup=False)
    rows = [(one.key, escape(_default(one.default)), escape(one.meaning)) for one in told.options]
    _print.show(_print.table(["option", "default", "meaning"], rows))


def _plain(docstring: str) -> str:
    return docstring.replace("``", "`")


def _default(value: object) -> str:
    if value is None or value in ("", ()):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _show_question(task: Task) -> None:
    from luthier.cli import _print
    from luthier.tasks._describe import question

    sizes = ", ".join(f"{len(task.examples(split)):,} {split}" for split in ("train", "validation", "test"))
    example, asked = question(task)
    _print.show(f"[bold]{task.name}[/]: {sizes}; the first question, to the letter:")
    for text in asked:
        _print.out().print(f"---\n{text}", markup=False, soft_wrap=True)
    _print.out().print("---", markup=False)
    if example.choices:
        right = [example.choices[at] for at in example.correct]
        _print.out().print(f"choices: {list(example.choices)}\nright: {right}", markup=False)
    else:
        _print.out().print(f"target: {example.target!r}", markup=False)
