"""What the documentation tells people to type can be typed: commands parse, run and task files validate."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from luthier.apps.sql.notes import read_notes
from luthier.cli import build_app
from luthier.core.catalog import load
from luthier.core.config import validate
from luthier.data.mixture import MixtureConfig
from luthier.gateway.config import GatewayConfig, read_config
from luthier.tasks.own import Config as TaskConfig
from luthier.tournament.entrant import read_entrants
from luthier.tournament.stream import Config as StreamConfig
from luthier.tournament.sweep import SweepConfig
from luthier.training.config import DataConfig, RunConfig
from luthier.training.pipeline import read_steps
from luthier.training.scaling import read_grid

REPOSITORY = Path(__file__).parents[2]
PAGES = sorted([*REPOSITORY.glob("README*.md"), REPOSITORY / "CONTRIBUTING.md", *REPOSITORY.glob("docs/**/*.md")])

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)```", re.DOTALL | re.MULTILINE
)
_SPAN = re.compile(r"(?<!`)`(?P<text>luthier [^`\n]+)`(?!`)")
_ENDS = {"|", ">", ">>", "<", "&&", "||", ";", "&"}


@cache
def application() -> Any:
    return typer.main.get_command(build_app())


def words(line: str) -> list[str] | None:
    """The arguments of a ``luthier`` command line, without prompt, variables, comment and what it is piped into."""
    found = re.split(r"\s#\s", line, maxsplit=1)[0]
    try:
        parts = shlex.split(found.removeprefix("$ "))
    except ValueError:
        return None
    while parts and re.fullmatch(r"[A-Z_]+=.*", parts[0]):
        parts = parts[1:]
    starts = [at for at, part in enumerate(parts) if part == "luthier" and (at == 0 or parts[at - 1] in _ENDS)]
    if not starts:
        return None
    rest = parts[starts[0] + 1 :]
    end = next((at for at, part in enumerate(rest) if part in _ENDS), len(rest))
    return rest[:end]


def commands(page: Path) -> Iterator[tuple[str, list[str], bool]]:
    """(as written, arguments, whether it stands in a block) of each command on a page."""
    text = page.read_text(encoding="utf-8")
    for fence in _FENCE.finditer(text):
        if fence["language"] in ("bash", "console", "sh"):
            for line in fence["body"].replace("\\\n", " ").splitlines():
                found = words(line.strip())
                if found is not None:
                    yield line.strip(), found, True
    for span in _SPAN.finditer(_FENCE.sub("", text)):
        found = words(span["text"])
        if found is not None:
            yield span["text"], found, False


def leaf(arguments: list[str]) -> tuple[Any, list[str]]:
    """The command that ``arguments`` name, and its own arguments."""
    command, rest = application(), list(arguments)
    while hasattr(command, "commands"):
        if not rest or rest[0].startswith("-"):
            break
        if rest[0] not in command.commands and hasattr(command, "unnamed"):
            rest.insert(0, command.unnamed)
        name = rest.pop(0)
        assert name in command.commands, f"no command {name!r}"
        command = command.commands[name]
    return command, rest


def check(arguments: list[str], *, whole: bool) -> None:
    command, rest = leaf(arguments)
    if whole:
        command.make_context(command.name, rest)
        return
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [each for each in rest if each.startswith("--") and each.partition("=")[0] not in known | {"--help"}]
    assert not unknown, f"no option {unknown}"


def every_command() -> list[Any]:
    found = [(page, written, rest, whole) for page in PAGES for written, rest, whole in commands(page)]
    assert len(found) > 50
    return [
        pytest.param(rest, whole, id=f"{page.relative_to(REPOSITORY)}: {written}"[:120])
        for page, written, rest, whole in found
    ]


@pytest.mark.parametrize(("arguments", "whole"), every_command())
def test_command_parses(arguments: list[str], whole: bool) -> None:
    check(arguments, whole=whole)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("luthier pull minilm-l6   # a comment", ["pull", "minilm-l6"]),
        ("$ luthier show latest", ["show", "latest"]),
        ("A=1 luthier doctor", ["doctor"]),
        ("printf 'a\\n' | luthier chat fake", ["chat", "fake"]),
        ("luthier tournament t.yaml 'entrants=[a, b]' > out", ["tournament", "t.yaml", "entrants=[a, b]"]),
        ("pip install luthier", None),
    ],
)
def test_words_of_a_line(line: str, expected: list[str] | None) -> None:
    assert words(line) == expected


@pytest.mark.parametrize(
    "arguments", [["pul", "x"], ["pull", "--nme", "x"], ["serve", "x", "--port", "many"], ["eval", "only-a-model"]]
)
def test_a_wrong_command_is_found(arguments: list[str]) -> None:
    with pytest.raises(Exception) as raised:  # typer carries its own copy of click's errors
        check(arguments, whole=True)
    assert isinstance(raised.value, AssertionError) or getattr(raised.value, "exit_code", 0) == 2


def yaml_blocks() -> list[Any]:
    found = []
    for page in PAGES:
        for number, fence in enumerate(_FENCE.finditer(page.read_text(encoding="utf-8")), 1):
            if fence["language"] == "yaml":
                found.append(pytest.param(fence["body"], id=f"{page.relative_to(REPOSITORY)} block {number}"))
    assert found
    return found


def check_run(values: dict[str, Any]) -> None:
    run = validate(RunConfig, values)
    load("methods", run.method.name).configure(run.method.options)
    if run.objective is not None:
        load("objectives", run.objective.name).configure(run.objective.options)


@pytest.mark.parametrize("text", yaml_blocks())
def test_yaml_is_a_run_or_a_task(text: str) -> None:
    values = yaml.safe_load(text)
    if "stream" in values:
        stream = validate(StreamConfig, values)
        load("methods", stream.method["name"] if isinstance(stream.method, dict) else stream.method)
    elif "steps" in values:
        for document in read_steps(values).values():
            check_run(document.values)
    elif "grid" in values:
        read_grid(values)
    elif "method" in values or "model" in values:
        check_run(values)
    elif set(values) == {"data"}:
        validate(DataConfig, values["data"])
    elif "sources" in values:
        validate(MixtureConfig, values)
    elif set(values) <= set(GatewayConfig.model_fields):
        read_config(values)
    elif "questions" in values:
        validate(SweepConfig, values)
    elif text.startswith("# notes.yaml"):
        read_notes(values)
    else:
        task = validate(TaskConfig, values)
        read_entrants(task, task.kind or ("generate" if task.documents is not None else "classify"))
