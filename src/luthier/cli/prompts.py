"""``luthier prompts``: the catalogue of prompt templates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Name = Annotated[
    str, typer.Argument(metavar="NAME[@VERSION]", help="A template; its newest version when none is given.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    prompts = typer.Typer(no_args_is_help=True, help="Prompt templates: files with versions and digests.")
    app.add_typer(prompts, name="prompts")
    prompts.command("list")(list_)
    prompts.command()(show)
    prompts.command()(add)
    prompts.command()(diff)


def list_(as_json: Json = False) -> None:
    """List the templates: those that come with Luthier, and your own."""
    from luthier.cli import _print
    from luthier.data.prompts import list_prompts

    problems: list[str] = []
    found = list_prompts(problems=problems)
    for problem in problems:
        _print.warn(problem)
    if as_json:
        _print.show_json([_plain(prompt) for prompt in found])
        return
    from rich.markup import escape

    rows = [
        (
            f"[bold]{prompt.label}[/]",
            "task" if prompt.template is not None else "text",
            prompt.language,
            prompt.digest[:12],
            "shipped" if prompt.source == "shipped" else "yours",
            escape(prompt.about),
        )
        for prompt in found
    ]
    _print.show(_print.table(["name", "for", "language", "digest", "from", "about"], rows))


def show(name: Name, as_json: Json = False) -> None:
    """Print one template as a file, for reading or as the start of your own."""
    from luthier.cli import _print
    from luthier.data.prompts import load_prompt

    prompt = load_prompt(name)
    if as_json:
        _print.show_json(_plain(prompt))
        return
    where = "comes with Luthier" if prompt.source == "shipped" else prompt.source
    _print.out().print(f"# {prompt.label}  sha256:{prompt.digest}  {where}", markup=False, soft_wrap=True)
    _print.out().print(prompt.as_yaml(), markup=False, soft_wrap=True, end="")


def add(
    file: Annotated[Path, typer.Argument(help="A template file (YAML: about, input and instruction, or text).")],
    name: Annotated[str | None, typer.Option(help="Its name; left out, the file's.")] = None,
) -> None:
    """Keep a template file as the next version of its name. Versions that are there never change."""
    from luthier.cli import _print
    from luthier.data.prompts import add_prompt

    kept = add_prompt(file, name)
    _print.out().print(f"{kept.label}  sha256:{kept.digest}", markup=False, soft_wrap=True)
    use = (
        f"prompt: {{template: {kept.label}}}"
        if kept.template is not None
        else f"the option of a strategy: {kept.label}"
    )
    _print.err().print(f"use it in a task file or a strategy as {use}", markup=False, soft_wrap=True)


def diff(
    first: Annotated[str, typer.Argument(metavar="A[@VERSION]")],
    second: Annotated[str, typer.Argument(metavar="B[@VERSION]")],
) -> None:
    """Show how two templates differ, line by line. The exit status is 1 when they do."""
    import difflib

    from rich.text import Text

    from luthier.cli import _print
    from luthier.data.prompts import load_prompt

    left, right = load_prompt(first), load_prompt(second)
    lines = list(
        difflib.unified_diff(
            left.as_yaml().splitlines(),
            right.as_yaml().splitlines(),
            f"{left.label}  {left.digest[:12]}",
            f"{right.label}  {right.digest[:12]}",
            lineterm="",
        )
    )
    if not lines:
        _print.say(f"{left.label} and {right.label} are the same")
        return
    colours = {"+": "green", "-": "red", "@": "cyan"}
    for line in lines:
        _print.out().print(Text(line, style=colours.get(line[:1], "")), soft_wrap=True)
    raise typer.Exit(1)


def _plain(prompt: Any) -> dict[str, Any]:
    asked = {"text": prompt.text}
    if prompt.template is not None:
        asked = {"instruction": prompt.template.instruction, "input": prompt.template.input}
    keys = ("name", "version", "about", "language", "placeholders", "digest", "source")
    return {key: getattr(prompt, key) for key in keys} | asked
