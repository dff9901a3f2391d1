"""``luthier check``: can a score be trusted? Contamination, leakage, parity, and the judge itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from luthier.core.dataset import Dataset, Example
    from luthier.core.run import Progress
    from luthier.data.corpus import Document
    from luthier.evaluation.contamination import Contamination, SubsetScores
    from luthier.evaluation.membership import Membership
    from luthier.store.database import Store

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Shown = Annotated[int, typer.Option("--show", min=0, help="How many findings to list.")]
TASKS = (".yaml", ".yml")
ENDS = "Exits with 0 when nothing was found, 1 when something was, 2 for input that cannot be used."


def register(app: typer.Typer) -> None:
    """Add the commands."""
    check = typer.Typer(
        name="check",
        help=f"Find out whether a score can be trusted. {ENDS}",
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    check.command("contamination")(contamination_command)
    check.command("leakage")(leakage_command)
    check.command("parity")(parity_command)
    check.command("judge")(judge_command)
    app.add_typer(check)


def contamination_command(
    task: Annotated[str, typer.Argument(metavar="TASK|FILE", help="A task file, a benchmark, or a data file.")],
    *,
    train: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Training data: a data or text file, a folder, hub:org/name. Repeat it."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Also count rows that this model was tuned on here.")
    ] = None,
    run: Annotated[
        str | None, typer.Option(metavar="RUN", help="An evaluation: its score with and without the found examples.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, validation or test of the task.")] = "test",
    n: Annotated[int, typer.Option("--n", help="Words that must be the same in a row; Chinese characters count.")] = 13,
    shortest: Annotated[int, typer.Option(help="Say nothing of examples with fewer words.")] = 8,
    common: Annotated[int, typer.Option(help="A phrase in more documents than this is everybody's.")] = 10,
    min_k: Annotated[bool, typer.Option("--min-k", help="Also ask the model how likely it finds the texts.")] = False,
    non_members: Annotated[
        str | None, typer.Option(metavar="FILE", help="Texts of the same kind that the model cannot have seen.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many texts for --min-k.")] = 200,
    show: Shown = 10,
    as_json: AsJson = False,
) -> None:
    """Find test examples that stand in training data, word for word (13-grams, as in the GPT-3 paper), and what they do to a score."""
    from itertools import chain

    from luthier.cli import _checks, _print
    from luthier.core.errors import InputError
    from luthier.data.corpus import documents
    from luthier.evaluation.contamination import contamination
    from luthier.store.database import open_store

    if not train and model is None:
        raise InputError(
            "contamination needs something to compare with: training data, or a model that was tuned here",
            hint="luthier check contamination TASK.yaml --train FILE   or   --model NAME",
        )
    if (min_k or non_members) and model is None:
        raise InputError("--min-k and --non-members ask a model; name it", hint="--model smollm2-135m")
    store = open_store()
    examples = _examples(task, split)
    recorded, missing = _recorded(store, model) if model else ([], [])
    with _print.progress() as progress:
        found = contamination(
            examples, chain(documents(train or ()), recorded), n=n, shortest=shortest, common=common, progress=progress
        )
        found = _with_lineage(store, found, examples, model, missing)
        scores = _scores(store, run, examples, found) if run else None
        likely = (
            _membership(store, model, examples, found, non_members, limit, progress) if min_k or non_members else None
        )
    if as_json:
        more = {"scores": scores.as_dict() if scores else None, "min_k": likely.as_dict() if likely else None}
        _print.show_json(found.as_dict() | more)
    else:
        _checks.show_contamination(task, found, show)
        if scores:
            _checks.show_scores(scores)
        if likely:
            _checks.show_membership(likely)
    if found.indices:
        raise typer.Exit(1)


def leakage_command(
    files: Annotated[
        list[str],
        typer.Argument(metavar="TASK.yaml | FILE FILE...", help="A task, or the files of its splits in order."),
    ],
    *,
    threshold: Annotated[float, typer.Option(help="Similarity from which texts are near copies, 0.5 to 1.")] = 0.8,
    near: Annotated[bool, typer.Option("--near/--no-near", help="Look for near copies too.")] = True,
    group: Annotated[
        str,
        typer.Option(
            metavar="FIELD", help="A field whose values must not stand in two splits: a document, a customer."
        ),
    ] = "",
    show: Shown = 10,
    as_json: AsJson = False,
) -> None:
    """Find what splits share: copies, near copies, contradicting labels, labels of one split only, shared documents."""
    from luthier.cli import _checks, _print
    from luthier.evaluation.leakage import leakage

    found = leakage(_splits(files), threshold=threshold, near=near, group=group)
    if as_json:
        _print.show_json(found.as_dict())
    else:
        _checks.show_leakage(found, show)
    if not found.clean:
        raise typer.Exit(1)


def parity_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A stored decoder, an export or an endpoint.")],
    *,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="SIDE", help="torch[:DTYPE], llamacpp[:TYPE] or openai:MODEL@URL (vLLM too). Repeat it."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Rows to ask; left out, built-in prompts.")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="How many prompts.")] = 16,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 16,
    as_json: AsJson = False,
) -> None:
    """Compare token ids, stop tokens, loss mask, log-probabilities and greedy answers of one model in training and on every engine."""
    from luthier.cli import _checks, _print
    from luthier.evaluation.parity import check_parity

    with _print.progress() as progress:
        found = check_parity(
            model, against=against or ("torch", "llamacpp"), prompts=prompts, n=n, tokens=tokens, progress=progress
        )
    if as_json:
        _print.show_json(found.as_dict())
    else:
        _checks.show_parity(found)
    if not found.agrees:
        raise typer.Exit(1)


def judge_command(
    judge: Annotated[
        str, typer.Argument(metavar="JUDGE", help="The judging model: stored, openai:MODEL@URL, or fake.")
    ],
    *,
    data: Annotated[
        Path, typer.Option(metavar="FILE", help="Rows with prompt, response_a, response_b and people's winner.")
    ],
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first pairs.")] = None,
    engine: Annotated[str, typer.Option(help="auto, torch, llamacpp, openai or fake.")] = "auto",
    mode: Annotated[
        str, typer.Option(help="write reads what the judge writes; score takes the probabilities of the verdicts.")
    ] = "write",
    rubric: Annotated[str | None, typer.Option(metavar="TEXT", help="What makes an answer better.")] = None,
    retries: Annotated[int, typer.Option(min=0, help="Further attempts at a reply that cannot be read.")] = 2,
    picture: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the report.")] = None,
    log: Annotated[Path | None, typer.Option(metavar="FILE.jsonl", help="Write every prompt and reply.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare a judge with people on pairs of answers: agreement, preference for a place, preference for length."""
    from luthier.cli import _checks, _print
    from luthier.core.errors import InputError
    from luthier.evaluation.judge_check import check_judge, draw, read_pairs
    from luthier.strategies._judge import DEFAULT_RUBRIC, Judge, nothing
    from luthier.strategies._load import load

    if mode not in ("write", "score"):
        raise InputError(f"--mode must be write or score; got {mode!r}")
    pairs = read_pairs(data, limit)
    opened = load(judge, engine=engine)
    try:
        with _print.progress() as progress, _checks.lines(log) as write:
            asked = Judge(
                opened,
                rubric=rubric or DEFAULT_RUBRIC,
                retries=retries,
                mode=mode,  # type: ignore[arg-type]
                log=write or nothing,
            )
            report = check_judge(asked, pairs, progress=progress)
    finally:
        opened.close()
    if picture is not None:
        draw(report, picture)
    if as_json:
        _print.show_json(report.as_dict())
    else:
        _checks.show_judge(report)
        if picture is not None:
            _print.say(f"drew {picture}")
    if report.findings:
        raise typer.Exit(1)


# ---- what the arguments name


def _examples(task: str, split: str) -> tuple[Example, ...]:
    from luthier.core.errors import InputError
    from luthier.data.files import KINDS
    from luthier.data.read import read
    from luthier.tasks._load import load_task

    if task.startswith("hub:") or task.lower().removesuffix(".gz").endswith(tuple(KINDS)):
        return read(task).examples
    if split not in ("train", "validation", "test"):
        raise InputError(f"--split must be train, validation or test; got {split!r}")
    return load_task(task).examples(split)


def _splits(files: list[str]) -> dict[str, Dataset]:
    from luthier.core.errors import InputError
    from luthier.data.files import bare_name
    from luthier.data.read import read
    from luthier.tasks._load import load_task

    if len(files) == 1 and (files[0].lower().endswith(TASKS) or not Path(files[0]).suffix):
        splits = load_task(files[0]).splits
        return {"train": splits.train, "validation": splits.validation, "test": splits.test}
    if len(files) == 1:
        raise InputError(
            f"leakage is between splits; got one file, {files[0]}",
            hint=f"luthier check leakage train.jsonl {files[0]}   or a task file",
        )
    names = [bare_name(Path(file)) for file in files]
    if len(set(names)) < len(names):
        names = list(files)
    return {name: read(file) for name, file in zip(names, files, strict=True)}


def _recorded(store: Store, model: str) -> tuple[list[Document], list[str]]:
    """Texts that the store says ``model`` was tuned on, and files of such texts that are gone."""
    from luthier.core.errors import NotFoundError
    from luthier.evaluation.trained_on import trained_documents
    from luthier.store.models import find

    if model.partition(":")[0] in ("openai", "fake"):
        raise NotFoundError(f"{model} is in no store: what it was trained on is not known here", hint="luthier models")
    find(store, model)
    return trained_documents(store, model)


def _with_lineage(
    store: Store, found: Contamination, examples: tuple[Example, ...], model: str | None, missing: list[str]
) -> Contamination:
    """With the examples that the store says ``model`` was trained on."""
    from dataclasses import replace

    from luthier.evaluation.trained_on import trained_examples

    if model is None:
        return found
    seen = trained_examples(store, model)
    notes = [] if seen else [f"the store has no record of examples that {model} was tuned on"]
    notes += [f"{model} was tuned on {file}, which is not there now: name it with --train" for file in missing]
    trained = tuple(i for i, e in enumerate(examples) if e.id in seen)
    return replace(found, trained=trained, notes=(*found.notes, *notes))


def _scores(store: Store, run: str, examples: tuple[Example, ...], found: Contamination) -> SubsetScores:
    import json

    from luthier.core import catalog
    from luthier.core.errors import MismatchError
    from luthier.evaluation.contamination import compare_scores
    from luthier.evaluation.loop import Scorer
    from luthier.evaluation.records import find, load_records
    from luthier.store.runs import folder

    evaluated = find(store, run)
    records = load_records(store, evaluated)
    strangers = [r for r in records if r.index >= len(examples) or examples[r.index].id != r.id]
    if strangers:
        raise MismatchError(
            f"run {evaluated.id} asked other examples than these ({len(strangers)} of {len(records)} differ)",
            hint="check the task and split that the run evaluated: luthier show RUN",
        )
    config = json.loads((folder(store, evaluated.id) / "config.json").read_text(encoding="utf-8"))["values"]
    name, options = config["task"]["scorers"][0]
    entry = catalog.load("scorers", name)
    scorer = Scorer(str(evaluated.summary.get("primary", name)), entry, entry.configure(options))
    return compare_scores(evaluated.id, scorer, records, found.indices)


def _membership(
    store: Store,
    model: str | None,
    examples: tuple[Example, ...],
    found: Contamination,
    non_members: str | None,
    limit: int,
    progress: Progress,
) -> Membership:
    from luthier.data.read import read
    from luthier.evaluation.contamination import parts_of
    from luthier.evaluation.membership import membership
    from luthier.models.load import load_model

    others = [parts_of(e)["input"] for e in read(non_members, limit=limit).examples] if non_members else []
    return membership(
        load_model(store, str(model)),
        [parts_of(e)["input"] for e in examples[:limit]],
        non_members=others,
        contaminated=found.indices,
        progress=progress,
    )
