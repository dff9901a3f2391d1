"""``luthier data from-feedback``: training examples of what people said, and what stood in their way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from luthier.data.feedback import Learned
    from luthier.data.gates import Gates

GATES = ("overlap", "attacks", "personal", "duplicates", "poisoning", "caps")
_LISTED = 3


def from_feedback_command(
    *,
    model: Annotated[str | None, typer.Option(help="Only answers of this model.")] = None,
    kind: Annotated[
        str | None, typer.Option(help="labelled, chat or preference; default: what the feedback holds.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    implicit: Annotated[
        bool,
        typer.Option("--implicit", help="Also what people did: copied, accepted, went on with one of two answers."),
    ] = False,
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="GATE", help=f"Open a gate: {', '.join(GATES)}. May be repeated; all: every one."),
    ] = None,
    personal: Annotated[str, typer.Option(help="Personal data: mask, drop (the example) or keep.")] = "mask",
    near: Annotated[float, typer.Option(help="Likeness from which texts are copies.")] = 0.8,
    most_share: Annotated[float, typer.Option(help="Most that one source may give, of all.")] = 0.2,
    held_out: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Rows that must not come back as training data. May be repeated."),
    ] = None,
    trusted: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Labelled rows to compare new labels with.")
    ] = None,
    embedder: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A model that tells which texts are alike; default: their words do."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The dataset's name; default: that of --out, or feedback.")] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; default: NAME.jsonl here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Make training examples of traces with feedback.

    Gates take out what is evaluated on, attacks, copies, wrong labels and what one source says too much, and mask personal data.
    """
    from luthier.core.errors import InputError
    from luthier.data import feedback
    from luthier.data.gates import Sight
    from luthier.data.read import write
    from luthier.gateway.sight import sight_of
    from luthier.store.database import open_store

    if kind is not None and kind not in feedback.KINDS:
        raise InputError(f"--kind must be one of {', '.join(feedback.KINDS)}; got {kind!r}")
    store, gates = open_store(), _gates(without or [], personal, near, most_share)
    name = name or (out.stem if out else "feedback")
    looks = gates.overlap or gates.attacks or gates.poisoning
    sight = sight_of(store, held_out=held_out or (), trusted=trusted, embedder=embedder) if looks else Sight()
    learned = feedback.learn_from(
        store, model=model, kind=kind, name=name, tenant=tenant, implicit=implicit, gates=gates, sight=sight  # type: ignore[arg-type]
    )  # fmt: skip
    path = write(learned.dataset, out or Path(f"{name}.jsonl"))
    if as_json:
        _show_json(learned, path)
    else:
        _show(learned, path)


def _gates(without: list[str], personal: str, near: float, most_share: float) -> Gates:
    from luthier.core.errors import InputError, did_you_mean
    from luthier.data.gates import Gates

    for each in without:
        if each not in (*GATES, "all"):
            raise InputError(f"--without must name a gate; got {each!r}. {did_you_mean(each, (*GATES, 'all'))}")
    opened = set(GATES) if "all" in without else set(without)
    shut = {each: each not in opened for each in GATES if each != "personal"}
    return Gates(**shut, personal="keep" if "personal" in opened else personal, near=near, most_share=most_share)  # type: ignore[arg-type]


def _show(learned: Learned, path: Path) -> None:
    from rich.markup import escape

    from luthier.cli import _print
    from luthier.cli._inspection import bars, show_problems

    dataset = learned.dataset
    counts = dataset.label_counts() if dataset.kind == "labelled" else {}
    if counts:
        _print.show(bars([(label, count) for label, count in sorted(counts.items(), key=lambda item: -item[1])]))
    if learned.gates:
        rows = [
            (each.name, f"{each.seen:,}", _count(each.dropped), _count(each.changed), escape(_why(each)))
            for each in learned.gates
        ]
        _print.show(
            _print.table(("gate", "seen", "dropped", "changed", "why"), rows, right=("seen", "dropped", "changed"))
        )
    _print.say(
        f"{len(dataset):,} {dataset.kind} examples from {learned.statements:,} statements, {len(dataset.problems):,} not used"
    )
    show_problems(dataset.problems)
    if len(learned.tenants) > 1:
        _print.warn(
            f"these are of {len(learned.tenants)} tenants together ({', '.join(learned.tenants[:5])}); --tenant takes one"
        )
    _print.say(
        f"wrote {escape(str(path))}; names and addresses have no form that could be found: look at it before you pass it on"
    )


def _why(report: Any) -> str:
    said = [f"{reason} ({count:,})" for reason, count in list(report.reasons.items())[:_LISTED]]
    more = len(report.reasons) - _LISTED
    return "; ".join([*said, *([f"{more} more reasons"] if more > 0 else []), *([report.note] if report.note else [])])


def _count(count: int) -> str:
    return f"{count:,}" if count else ""


def _show_json(learned: Learned, path: Path) -> None:
    from dataclasses import asdict

    from luthier.cli import _print

    _print.show_json({
        "dataset": learned.dataset.name, "digest": learned.dataset.digest, "kind": learned.dataset.kind, "path": str(path),
        "examples": len(learned.dataset), "statements": learned.statements, "tenants": learned.tenants,
        "gates": [asdict(each) for each in learned.gates], "problems": [asdict(each) for each in learned.dataset.problems],
    })  # fmt: skip
