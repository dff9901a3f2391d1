"""How the reports of ``luthier check`` look in the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.evaluation.contamination import Contamination, Overlap, SubsetScores
    from luthier.evaluation.judge_check import JudgeReport
    from luthier.evaluation.leakage import Leakage, Pair
    from luthier.evaluation.membership import Membership
    from luthier.evaluation.parity import Parity

_TEXT = 140
_GOOD, _BAD = "[bold green]clean[/]", "[bold red]found[/]"


@contextmanager
def lines(path: Path | None) -> Iterator[Callable[[Mapping[str, Any]], None] | None]:
    """Writes each record that it is called with as a line of ``path``; None without a path."""
    from luthier.store.home import disk_errors

    if path is None:
        yield None
        return
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            yield lambda record: print(json.dumps(record, ensure_ascii=False, default=str), file=file, flush=True)


def show_contamination(task: str, found: Contamination, most: int) -> None:
    """The share, the examples, and what could not be said."""
    from rich.markup import escape

    from luthier.cli import _print

    judged = found.examples - found.short
    _print.show(
        f"{_BAD if found.indices else _GOOD}  {len(found.indices):,} of {judged:,} examples of {escape(task)} "
        f"({found.share:.1%}) occur in the training data"
    )
    told = [f"{found.documents:,} training documents, {found.words:,} words", f"runs of {found.n} words"]
    if found.short:
        told.append(f"{found.short:,} examples have fewer than {found.shortest} words: nothing can be said of them")
    if found.trained:
        told.append(f"{len(found.trained):,} were trained on, by the store's own record")
    _print.show(f"[dim]{' · '.join(told)}[/]")
    for overlap in found.contaminated[:most]:
        _show_overlap(overlap)
    if len(found.contaminated) > most:
        _print.show(f"[dim]… and {len(found.contaminated) - most:,} more: --show, --json[/]")
    if found.common:
        _print.show(
            f"{len(found.common):,} more share only phrases that stand in over {found.most_common} different documents, for "
            f"example {escape(repr(_cut(found.common[0].text)))}"
        )
    for note in found.notes:
        _print.warn(note)


def _show_overlap(overlap: Overlap) -> None:
    from rich.markup import escape

    from luthier.cli import _print

    more = f" and {overlap.documents - 1} more" if overlap.documents > 1 else ""
    where = f"{overlap.where[0]}{more}" if overlap.where else ""
    _print.show(
        f"\n[bold]{escape(overlap.source or overlap.id)}[/] {overlap.part}, {overlap.coverage:.0%} covered, in {escape(where)}"
    )
    _print.show(f"  {overlap.words} words: {escape(_cut(overlap.text))}")


def show_scores(scores: SubsetScores) -> None:
    """The score on both parts, and the difference."""
    from luthier.cli import _print

    parts = (
        (f"contaminated ({scores.contaminated_examples:,})", scores.contaminated),
        (f"clean ({scores.clean_examples:,})", scores.clean),
        ("difference", scores.difference),
    )
    rows = [(name, f"{s['value']:.3f}", _interval(s)) for name, s in parts]
    title = f"{scores.scorer} of run {scores.run}"
    _print.show(_print.table(["part", "value", "95% interval"], rows, title=title, right=["value"]))


def show_membership(found: Membership) -> None:
    """Distributions of min-k%, and what they mean."""
    from luthier.cli import _print

    rows = [(name, d.texts, *(f"{v:.2f}" for v in (d.mean, d.p10, d.p50, d.p90))) for name, d in found.sets.items()]
    title = f"min-{found.share:.0%} log-probability under {found.model}, nats a token (higher is likelier)"
    columns = ["texts", "number", "mean", "10%", "median", "90%"]
    _print.show(_print.table(columns, rows, title=title, right=columns[1:]))
    if found.auc is not None:
        _print.show(f"AUC test against non-members: [bold]{found.auc['value']:.2f}[/] {_interval(found.auc)}")
    _print.show(found.meaning)


def show_leakage(found: Leakage, most: int) -> None:
    """A row a pair of splits, then examples."""
    from rich.markup import escape

    from luthier.cli import _print

    rows = [_leakage_row(pair, found.group) for pair in found.pairs]
    columns = ["splits", "rows", "exact", "normalised", "near", "share", "other label", "unseen labels", "groups", ""]
    if not found.group:
        columns.remove("groups")
    _print.show(_print.table(columns, rows, right=columns[1:8]))
    for pair in found.pairs:
        for copy in pair.copies[:most]:
            labels = (
                f" [red]{escape(copy.labels[1])} there, {escape(copy.labels[0])} here[/]"
                if copy.labels and copy.contradicts
                else ""
            )
            alike = f" {copy.similarity:.2f}" if copy.kind == "near" else ""
            _print.show(f"{copy.kind}{alike}: [bold]{escape(copy.place)}[/] repeats [bold]{escape(copy.of)}[/]{labels}")
            _print.show(f"  [dim]{escape(copy.text)}[/]")
        if len(pair.copies) > most:
            _print.show(
                f"[dim]… and {len(pair.copies) - most:,} more between {pair.first} and {pair.second}: --show, --json[/]"
            )
        for label, count in pair.unseen.items():
            _print.show(f"label [bold]{escape(label)}[/] is in {pair.second} ({count} rows) and not in {pair.first}")
        for label in pair.missing:
            _print.show(f"[dim]label {escape(label)} is in {pair.first} and not in {pair.second}[/]")
        for value, count in list(pair.groups.items())[:most]:
            _print.show(
                f"{escape(found.group)} [bold]{escape(value)}[/] is in {pair.first} and in {count} rows of {pair.second}"
            )
    for conflict in found.conflicts[:most]:
        said = ", ".join(f"{escape(label)} ({count})" for label, count in conflict.labels.items())
        _print.show(f"in {conflict.split} one text has the labels {said}: {escape(', '.join(conflict.places[:3]))}")
    if len(found.conflicts) > most:
        _print.show(f"[dim]… and {len(found.conflicts) - most:,} more texts with several labels[/]")


def _leakage_row(pair: Pair, group: str) -> list[str]:
    row = [f"{pair.first} → {pair.second}", f"{pair.rows:,}"]
    row += [f"{pair.count(kind):,}" for kind in ("exact", "normalised", "near")]
    row += [f"{len(pair.copies) / pair.rows:.1%}", f"{pair.contradictions:,}", f"{len(pair.unseen):,}"]
    return [*row, *([f"{sum(pair.groups.values()):,} rows"] if group else []), _GOOD if pair.clean else _BAD]


def show_parity(found: Parity) -> None:
    """A row a comparison, then where things differ."""
    from rich.markup import escape

    from luthier.cli import _print

    colours = {"equal": "green", "within": "green", "differs": "bold red", "shown": "yellow", "not offered": "dim"}
    rows = [
        (
            escape(f"{c.left} → {c.right}"),
            c.what,
            f"{c.equal}/{c.of}" if c.of else "",
            "" if c.worst is None else f"{c.worst:.2g}",
            "" if c.mean is None else f"{c.mean:.2g}",
            c.tolerance,
            f"[{colours[c.verdict]}]{c.verdict}[/]",
        )
        for c in found.comparisons
    ]
    title = f"{escape(found.model)}: {found.prompts} prompts, {found.tokens} tokens an answer"
    columns = ["sides", "what", "equal", "worst", "mean", "tolerance", "verdict"]
    _print.show(_print.table(columns, rows, title=title, right=["equal", "worst", "mean"]))
    for c in found.comparisons:
        said = "; ".join(part for part in (c.where, c.note) if part)
        if said and (c.verdict == "differs" or c.note or c.worst is None):
            _print.show(f"[dim]{escape(f'{c.right}, {c.what}: {said}')}[/]")
    _print.show(
        "[bold green]agrees[/]: what must be equal is equal, the rest within its tolerance"
        if found.agrees
        else "[bold red]differs[/]: see the lines marked so"
    )


def show_judge(report: JudgeReport) -> None:
    """Figures with intervals, who won by whom, and what speaks against the judge."""
    from rich.markup import escape

    from luthier.cli import _print
    from luthier.evaluation.judge_check import WINNERS

    people = "" if report.people is None else f"two people agree on {report.people:.0%}"
    lines_ = (
        ("agrees with people", report.accuracy, f"always saying the commonest: {report.majority:.2f}"),
        ("Cohen's kappa", report.kappa, people or "0 is chance, 1 full agreement"),
        ("first place wins", report.first_place, "0.5 is fair"),
        ("both orders agree", report.consistent, ""),
        ("longer answer wins", report.longer_wins, _by_people(report)),
        ("log-odds a doubling of length", report.length_coefficient, "0 is fair, people's choice held fixed"),
    )
    rows = [
        (name, "" if f is None else f"{f['value']:.2f}", "nothing to say" if f is None else _interval(f), note)
        for name, f, note in lines_
    ]
    title = f"{escape(report.judge)} on {report.pairs:,} pairs, each in both orders"
    _print.show(_print.table(["", "value", "95% interval", ""], rows, title=title, right=["value"]))
    table = [(human, *(report.confusion[human][w] for w in WINNERS)) for human in WINNERS]
    _print.show(_print.table(["people \\ judge", *WINNERS], table, right=WINNERS))
    asked = report.counts.get("asked")
    if asked:
        told = ", ".join(
            f"{n:,} {kind}" for kind, n in report.counts.items() if n and kind not in ("asked", "unparsable")
        )
        _print.show(
            f"[dim]{asked:,} replies{', ' + told if told else ''}; {report.unparsable:,} pairs without a verdict[/]"
        )
    for finding in report.findings:
        _print.show(f"[bold red]against it:[/] {finding}")
    if not report.findings:
        _print.show("[bold green]nothing against it[/] on these pairs")


def _by_people(report: JudgeReport) -> str:
    people = report.longer_wins_people
    return "" if people is None else f"by people's choice {people['value']:.2f} {_interval(people)}"


def _interval(figure: Mapping[str, float]) -> str:
    return rf"\[{figure['low']:.2f}, {figure['high']:.2f}]"


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"
