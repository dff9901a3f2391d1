"""``luthier data``: look at a dataset, cut it, see what a model will be taught, make one of feedback."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from luthier.core.dataset import Dataset, Example
    from luthier.core.message import Conversation
    from luthier.core.task import PromptTemplate
    from luthier.data.render import Renderer

File = Annotated[str, typer.Argument(metavar="FILE", help="JSONL, JSON, CSV, TSV, Parquet or hub:org/name[:split].")]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="FIELD=NAME", help="Which of the file's fields stands for FIELD."),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Go on without broken rows and count them.")]
Model = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="A pulled model, for its tokens and template.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    from luthier.cli._answers import answers_command
    from luthier.cli._extraction import extraction_command
    from luthier.cli._feedback import from_feedback_command
    from luthier.cli._mixture import mixture_command

    data = typer.Typer(
        name="data",
        help="Inspect, split and render datasets; make one of feedback, of a model's answers, or of others as instructions.",
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    data.command("inspect")(inspect_command)
    data.command("split")(split_command)
    data.command("render")(render_command)
    data.command("from-feedback")(from_feedback_command)
    data.command("answers")(answers_command)
    data.command("mixture")(mixture_command)
    data.command("extraction")(extraction_command)
    app.add_typer(data)


def inspect_command(
    file: File,
    *,
    model: Model = None,
    context: Annotated[int | None, typer.Option(min=1, help="Report rows over this many tokens.")] = None,
    column: Columns = None,
    skip_bad: SkipBad = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count rows, lengths, labels, copies, contradictions, languages and broken rows.

    Exits with 2 when rows are broken, unless --skip-bad.
    """
    from luthier.cli import _print
    from luthier.data.inspect import inspect

    tokenizer, renderer, longest = _tokens(model) if model else (None, None, None)
    report = inspect(
        file,
        tokenizer=tokenizer,
        renderer=renderer,
        context_length=context or longest,
        columns=_columns(column),
    )
    if as_json:
        _print.show_json(report.as_dict())
    else:
        from luthier.cli._inspection import show_inspection

        show_inspection(report, file)
    if report.problems and not skip_bad:
        raise typer.Exit(2)


def split_command(
    file: File,
    *,
    out: Annotated[Path, typer.Option(help="Folder for train.jsonl, validation.jsonl and test.jsonl.")],
    train: Annotated[float, typer.Option(help="Share of rows.")] = 0.8,
    validation: Annotated[float, typer.Option(help="Share of rows; may be 0.")] = 0.1,
    test: Annotated[float, typer.Option(help="Share of rows; may be 0.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Another seed is another cut.")] = 0,
    column: Columns = None,
    skip_bad: SkipBad = False,
) -> None:
    """Cut a file by label, copies of a text on one side, the same for any order of its rows."""
    from luthier.cli import _print
    from luthier.core.errors import DataError
    from luthier.data.read import read, write
    from luthier.data.split import NAMES, check_labels, split

    dataset = read(file, skip_bad=skip_bad, columns=_columns(column))
    _say_skipped(dataset)
    splits = split(dataset, train=train, validation=validation, test=test, seed=seed)
    try:
        check_labels(splits)
    except DataError as error:
        _print.warn(str(error))
    parts = [part for part in (getattr(splits, name) for name in NAMES) if len(part)]
    paths = [write(part, out / f"{part.name.rsplit('/', 1)[1]}.jsonl") for part in parts]
    labels = dataset.labels or ()
    rows = [[label, *(part.label_counts()[label] for part in parts)] for label in labels]
    rows.append(["[bold]rows[/]", *(len(part) for part in parts)])
    names = [path.stem for path in paths]
    _print.show(
        _print.table(
            ["label" if labels else "", *names], [[_cell(value) for value in row] for row in rows], right=names
        )
    )
    for path in paths:
        _print.say(f"wrote {path}")


def render_command(
    file: File,
    *,
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="A pulled model, for its tokens and template.")],
    mask: Annotated[bool, typer.Option("--mask", help="Show which tokens are trained on.")] = False,
    objective: Annotated[
        str | None, typer.Option("--objective", metavar="NAME", help="With --mask: as this objective trains it.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="Option of the objective, e.g. share=0.3.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="How many rows.")] = 3,
    instruction: Annotated[
        str, typer.Option(help="System turn of labelled and question rows ({labels} is replaced).")
    ] = "",
    column: Columns = None,
    skip_bad: SkipBad = False,
) -> None:
    """Show rows exactly as the model is taught them: template, tokens and, with --mask, the trained part."""
    from luthier.cli import _print
    from luthier.cli._masks import show_masks
    from luthier.core.errors import InputError, UnsupportedError
    from luthier.core.task import PromptTemplate
    from luthier.data import extraction
    from luthier.data.read import read

    if (objective or option) and not mask:
        raise InputError("--objective and --option say what --mask shows", hint="add --mask")
    _, renderer, _ = _tokens(model)
    dataset = read(file, skip_bad=skip_bad, columns=_columns(column))  # all of it: the prompt lists every label
    _say_skipped(dataset)
    if not instruction and dataset.kind in extraction.KINDS:
        instruction = extraction.instruction_for(dataset)
    prompt = PromptTemplate(instruction, labels=dataset.labels)
    if mask and (objective or renderer is None or dataset.kind in ("text", "preference")):
        show_masks(model, dataset, prompt, objective, option or (), rows)
        return
    if renderer is None:
        raise UnsupportedError(
            f"{model} is an encoder: it reads bare text and has no chat template", hint="--mask shows what it is taught"
        )
    for number, example in enumerate(dataset.examples[:rows], 1):
        _print.say(f"[dim]row {number}, {_escape(example.source)}[/]")
        _show_row(renderer, example, dataset, prompt, mask)


# ---- what the commands share


def _columns(pairs: list[str] | None) -> dict[str, str]:
    from luthier.core.errors import InputError

    out = {}
    for pair in pairs or ():
        field, equals, own = pair.partition("=")
        if not (field and equals and own):
            raise InputError(f"--column must be FIELD=NAME, for example text=body; got {pair!r}")
        out[field] = own
    return out


def _tokens(name: str) -> tuple[Any, Renderer | None, int | None]:
    """(text -> number of tokens, renderer of a decoder, context length) of a stored model."""
    from luthier.models.load import load_renderer, load_tokenizer
    from luthier.store.artifacts import path_of
    from luthier.store.database import open_store
    from luthier.store.models import find

    store = open_store()
    record = find(store, name)
    while record.kind == "endpoint" and record.meta.get("target"):
        record = find(store, str(record.meta["target"]))
    if record.base and record.base != record.name:
        record = find(store, record.base)
    folder, longest = path_of(store, record.digest), record.meta.get("context_length")
    if record.architecture != "encoder":
        return None, load_renderer(folder), longest
    tokenizer = load_tokenizer(folder)
    return lambda text: len(tokenizer(text)["input_ids"]), None, longest


def _say_skipped(dataset: Dataset) -> None:
    from luthier.cli import _print
    from luthier.cli._inspection import show_problems

    if dataset.problems:
        _print.warn(f"left out {len(dataset.problems):,} broken rows:")
        show_problems(dataset.problems)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _cell(value: Any) -> Any:
    return f"{value:,}" if isinstance(value, int) else value if str(value).startswith("[bold]") else _escape(str(value))


# ---- render


def _conversation(example: Example, dataset: Dataset, prompt: PromptTemplate) -> Conversation:
    """The row as a conversation to train on: of labelled and question rows the task's prompt and the answer."""
    from luthier.core.message import Message
    from luthier.data import extraction

    if dataset.kind == "chat":
        return example.messages
    if dataset.kind == "preference":
        return (*example.messages, *(example.chosen or example.rejected))
    target = extraction.answer(example) if dataset.kind in extraction.KINDS else example.target
    return (*prompt.messages(example.text), Message("assistant", target or ""))


def _show_texts(example: Example) -> None:
    """Texts that are read one by one, without a template."""
    from luthier.cli import _print

    beside = "positive" if example.score is None else f"score {example.score:g}"
    named = [("anchor", example.text), *((beside, text) for text in example.positives)]
    for name, shown in [*named, *(("negative", text) for text in example.negatives)]:
        _print.out().print(f"{name:<8}  {shown}", markup=False)


def _show_row(renderer: Renderer, example: Example, dataset: Dataset, prompt: PromptTemplate, mask: bool) -> None:
    from rich.text import Text

    from luthier.cli import _print
    from luthier.data.render import render_text, render_tokens

    tools = example.meta.get("tools")
    if dataset.kind == "text":
        _print.out().print(example.text, markup=False)
        return
    if example.positives:
        _show_texts(example)
        return
    conversation = _conversation(example, dataset, prompt)
    rendered = renderer.training_ids(conversation, tools)
    if mask and _print.out().is_terminal:
        text = Text()
        for at, (piece, trained, _) in enumerate(render_tokens(renderer, conversation, tools)):
            shade = ("black on green3", "black on green1") if trained else ("dim", "dim")
            text.append(piece, style=shade[at % 2])
        _print.out().print(text)
    else:
        _print.out().print(render_text(renderer, conversation, mask, tools), markup=False)
    _print.say(f"[dim]{len(rendered.ids):,} tokens, {sum(rendered.mask):,} trained on[/]")
    if rendered.untrained:
        turns = ", ".join(str(at + 1) for at in rendered.untrained)
        _print.warn(
            f"assistant turns {turns} are not trained on: the template shows them otherwise than the model would say them"
        )
