"""How evaluations and boards look in the terminal, for ``eval``, ``show`` and ``tournament``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

    from luthier.evaluation.records import Record
    from luthier.evaluation.result import EvalResult
    from luthier.tournament.board import Board, Standing

_BAR = 16
_COLOURS = ("blue", "dark_orange3", "green", "magenta", "red", "yellow4", "cyan", "olive_drab")


def bar(value: float, low: float, high: float, colour: str, width: int = _BAR) -> Text:
    """A score from 0 to 1 as a bar; the interval is the lighter part around its end."""
    from rich.text import Text

    solid, reach = (max(0.0, min(1.0, share)) * width for share in (low, high))
    middle = max(0.0, min(1.0, value)) * width
    drawn = Text(no_wrap=True)
    for cell in range(width):
        if cell + 0.5 <= solid:
            drawn.append("━", style=f"bold {colour}")
        elif cell == min(int(middle), width - 1):
            drawn.append("╋", style=f"bold {colour}")
        elif cell + 0.5 <= reach:
            drawn.append("─", style=colour)
        else:
            drawn.append("·", style="dim")
    return drawn


def show_result(result: EvalResult) -> None:
    """Scores with intervals, labels, commonest mistakes, cost, and where the records are."""
    from rich.markup import escape

    from luthier.cli import _print
    from luthier.tournament import figures

    count = result.counts.get("examples", 0)
    how = "" if result.strategy == "own" else f", {result.strategy}"
    title = f"{escape(result.model)}{escape(how)} on {escape(result.task)}, {result.split} split, {count:,} examples"
    rows = [
        (
            f"[bold]{figures.metric(name)}[/]" if name == result.primary else figures.metric(name),
            f"[bold]{score['value']:.3f}[/]",
            f"[{score['low']:.3f}, {score['high']:.3f}]".replace("[", r"\["),
            bar(score["value"], score["low"], score["high"], _COLOURS[0])
            if _is_share(score)
            else _direction(result, name),
        )
        for name, score in result.scores.items()
    ]
    _print.show(_print.table(["score", "value", "95% interval", ""], rows, title=title, right=["value"]))
    for key, parts in result.slices.items():
        _show_slices(result, key, parts)
    if result.labels:
        _show_labels(result)
    for line in (*_counted(result.counts), _cost(result)):
        _print.show(line)
    for warning in result.warnings:
        _print.warn(warning)
    _print.show(f"[dim]records:[/] luthier show {result.run.id} --wrong")


def _is_share(score: Mapping[str, float]) -> bool:
    return score["low"] >= 0.0 and score["high"] <= 1.0


def _direction(result: EvalResult, name: str) -> str:
    return "[dim]lower is better[/]" if name in result.lower_is_better else ""


def _show_slices(result: EvalResult, key: str, parts: Mapping[str, Mapping[str, float]]) -> None:
    """The primary figure of every part, best first."""
    from rich.markup import escape

    from luthier.cli import _print
    from luthier.tournament import figures
    from luthier.tournament.verdict import LEVEL

    sign = 1.0 if result.primary in result.lower_is_better else -1.0
    rows = [
        (
            escape(value),
            f"{int(part['examples']):,}",
            f"{part['value']:.3f}",
            f"[{part['low']:.3f}, {part['high']:.3f}]".replace("[", r"\["),
            "differs from the rest" if part["p_adjusted"] is not None and part["p_adjusted"] < LEVEL else "",
        )
        for value, part in sorted(parts.items(), key=lambda item: (sign * item[1]["value"], item[0]))
    ]
    columns = [escape(key), "examples", figures.metric(result.primary), "95% interval", ""]
    _print.show(_print.table(columns, rows, right=columns[1:3]))


def _show_labels(result: EvalResult) -> None:
    from rich.markup import escape

    from luthier.cli import _print

    rows = [
        (escape(label), *(f"{f[key]:.2f}" for key in ("precision", "recall", "f1")), int(f["support"]))
        for label, f in result.labels.items()
    ]
    columns = ["label", "precision", "recall", "F1", "support"]
    _print.show(_print.table(columns, rows, right=columns[1:]))
    mistakes = [f"{escape(t)} → {escape(a)} ({n})" for t, a, n in result.confused()]
    if mistakes:
        _print.show("[dim]commonest mistakes:[/] " + ", ".join(mistakes))


def _counted(counts: Mapping[str, int]) -> list[str]:
    said = (
        ("unparsed", "answers were none of the labels and count as wrong"),
        ("ties", "examples had several equally likely labels; the first was taken"),
        ("errors", "examples were refused by the engine and count as wrong"),
        ("unscored", "answers could not be scored and are left out of the score"),
    )
    return [f"[yellow]{counts[key]:,}[/] {text}" for key, text in said if counts.get(key)]


def _cost(result: EvalResult) -> str:
    from luthier.cli import _print
    from luthier.tournament import figures

    latency, parts = result.latency, [f"answered in {_print.duration(result.seconds)}"]
    if latency.get("requests"):
        parts.append(
            f"single requests: median {figures.milliseconds(latency['p50_s'])}, p95 {figures.milliseconds(latency['p95_s'])}"
            + (f", p99 {figures.milliseconds(latency['p99_s'])}" if "p99_s" in latency else "")
            + f" ({latency['requests']} measured)"
        )
    if result.memory.get("weights_mb") is not None:
        parts.append(f"weights {figures.megabytes(result.memory['weights_mb'])}")
    return "[dim]" + " · ".join(parts) + "[/]"


def show_records(records: Sequence[Record], primary: str) -> None:
    """One record after another: source, input, target, answer, how it came about, and how likely the options were."""
    from rich.markup import escape

    from luthier.cli import _print

    for r in records:
        right = r.scores.get(primary, 0.0) >= 1.0
        mark = "[green]✓[/]" if right else "[red]✗[/]"
        _print.show(
            f"{mark} [bold]{escape(r.answer) or '(empty)'}[/]"
            + ("" if right else f"  target [bold]{escape(r.target)}[/]")
        )
        _print.show(f"  {escape(r.input)}")
        told = [escape(r.source or r.id)]
        if r.logprobs:
            top = sorted(r.logprobs.items(), key=lambda pair: -pair[1])[:3]
            told.append("log-probabilities " + ", ".join(f"{escape(label)} {value:.2f}" for label, value in top))
        if r.reasoning:
            _print.show(f"  [dim]{escape(r.reasoning.strip())}[/]")
        if len(r.samples) > 1:
            _print.show(f"  [dim]{len(r.samples)} samples: {escape(' | '.join(s.strip()[:60] for s in r.samples))}[/]")
        told += ["not scored"] if primary not in r.scores else []
        told += ["tie"] if r.tie else []
        told += ["none of the labels"] if not r.parsed and not r.error else []
        told += [f"refused: {escape(r.error)}"] if r.error else []
        _print.show(f"  [dim]{' · '.join(told)}[/]\n")


def show_board(board: Board) -> None:
    """The board, the verdict, and where the page is. Narrow terminals get fewer columns; the page has them all."""
    from rich.markup import escape

    from luthier.cli import _print
    from luthier.tournament import figures

    lines = [_board_line(board, s, _COLOURS[i % len(_COLOURS)]) for i, s in enumerate(board.standings)]
    second = _second(board)
    spare = [
        *([figures.metric(second)] if second else []),
        "artifact",
        *(["1,000 requests"] if any(s.price_per_1000 is not None for s in board.standings) else []),
        "training",
        "model",
        " ",
        "trained",
        "memory",
        "latency",
    ]
    columns = _fitting(lines, _print.out().width, spare)
    sizes = board.task["sizes"]
    to_train = f" {sizes['train']:,} to train on," if sizes["train"] else ""
    title = f"{escape(board.name)}: {sizes['test']:,} test examples,{to_train} the same for everyone"
    rows = [[line[name] for name in columns] for line in lines]
    _print.show(
        _print.table(columns, rows, title=title, right=set(columns) - {"entrant", "model", _score_column(board), " "})
    )
    for s in board.standings:
        if s.status == "failed":
            _print.show(f"[red]{escape(s.name)} failed:[/] {escape(s.reason)}")
    for note in board.notes:
        _print.warn(note)
    _show_verdict(board)


def _score_column(board: Board) -> str:
    from luthier.tournament import figures

    return figures.metric(board.task["primary"])


def _second(board: Board) -> str | None:
    """The second scorer's name, when there is one."""
    return next((name for s in board.finished[:1] for name in s.scores if name != board.task["primary"]), None)


def _fitting(lines: Sequence[Mapping[str, Text]], width: int, dispensable: Sequence[str]) -> list[str]:
    """The columns that fit into ``width`` side by side, after leaving out as few as needed, in the given order."""
    columns = list(lines[0]) if lines else []
    spare = list(dispensable)

    def needed() -> int:
        return sum(3 + max(len(name), *(line[name].cell_len for line in lines)) for name in columns)

    while needed() > width and spare:
        columns.remove(spare.pop(0))
    return columns


def _board_line(board: Board, s: Standing, colour: str) -> dict[str, Text]:
    """Every column of one entrant."""
    from rich.text import Text

    from luthier.tournament import figures

    kept, second, done = s.name == board.verdict.get("keep"), _second(board), s.status == "done"
    score, drawn, versus = Text("failed", style="red"), Text(), Text()
    if done:
        value, low, high = s.score["value"], s.score["low"], s.score["high"]
        score = Text.assemble((figures.score(value), "bold"), f" {figures.interval(low, high)}")
        drawn = bar(value, low, high, colour)
        against = board.against_leader(s.name)
        if against:
            versus = Text(f"{figures.signed(-against.value)}, {figures.probability(against.p_adjusted)}")
    line = {
        "#": Text(f"{'▶ ' if kept else ''}{s.rank or figures.DASH}", style="bold green" if kept else ""),
        "entrant": Text(s.name, style="bold green" if kept else "bold"),
        "model": Text(s.model, style="dim"),
        _score_column(board): score,
        " ": drawn,
    }
    if second:
        line[figures.metric(second)] = Text(figures.score(s.scores[second]["value"]) if done else "")
    line["vs leader"] = versus
    told = {
        "trained": "none" if s.trainable_parameters == 0 else figures.count(s.trainable_parameters),
        "training": figures.duration(s.train_s),
        "latency": figures.milliseconds(s.latency_p50_s),
        "memory": figures.megabytes(s.weights_mb),
        "artifact": figures.megabytes(s.artifact_mb),
    }
    if any(other.price_per_1000 is not None for other in board.standings):
        told["1,000 requests"] = figures.money(s.price_per_1000)
    return line | {name: Text(text) for name, text in told.items()}


def _show_verdict(board: Board) -> None:
    from rich import box
    from rich.panel import Panel
    from rich.text import Text

    from luthier.cli import _print

    said = Text(board.verdict["sentence"], style="bold")
    for reason in board.verdict["reasons"]:
        said.append(f"\n{reason}", style="not bold")
    said.append(f"\n{board.verdict['rule']}\nTest: {board.verdict['test']}.", style="not bold dim")
    width = min(_print.out().width, 110)
    panel = Panel(said, title="verdict", title_align="left", box=box.ROUNDED, padding=(0, 1), width=width)
    _print.out().print(panel, soft_wrap=False)
    _print.show(f"[dim]page with plots:[/] {Path(board.folder) / 'board.html'}")
    if board.verdict.get("keep") and board.task.get("promotable", True):
        _print.say(f"[dim]next:[/] luthier promote {board.run}   registers {board.verdict['keep']} as an endpoint")


def plain(value: Any) -> str:
    """A value of a configuration on one line."""
    import json

    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
