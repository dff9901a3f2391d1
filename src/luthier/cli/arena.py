"""``luthier arena``: which of two answers is better, say people and judges; ratings of the models."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from luthier.evaluation.arena import Answers, Pair, Round
    from luthier.evaluation.arena_board import ArenaBoard
    from luthier.store.database import Store

Arena = Annotated[str, typer.Option("--arena", metavar="NAME", help="Which collection of votes.")]
Engine = Annotated[str, typer.Option(help="Engine of the models: auto, torch, llamacpp, openai or fake.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first prompts.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
VOTES = {"a": "a", "1": "a", "b": "b", "2": "b", "t": "tie", "tie": "tie", "=": "tie", "s": "skip", "skip": "skip"}
HELP = "a or b for the better answer, t for a tie, s to skip, q to leave"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    arena = typer.Typer(
        name="arena",
        help="Blind votes on pairs of answers, by people or a judge; Elo, Bradley-Terry and TrueSkill.",
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    arena.command("play")(play)
    arena.command("judge")(judge)
    arena.command("import")(import_command)
    arena.command("show")(show)
    app.add_typer(arena)


def play(
    models: Annotated[list[str], typer.Argument(metavar="A B [C ...]", help="Two or more models.")],
    *,
    prompts: Annotated[
        str | None, typer.Option(metavar="FILE", help="A task or a file of prompts; left out, you type them.")
    ] = None,
    arena: Arena = "arena",
    voter: Annotated[str | None, typer.Option(help="Your name. Default: the user's.")] = None,
    limit: Limit = None,
    engine: Engine = "auto",
    seed: Annotated[int, typer.Option(help="Decides which prompt comes when and which answer is A.")] = 0,
) -> None:
    """Show two anonymous answers side by side and keep your vote. What you voted on before does not come again."""
    from luthier.cli._print import say
    from luthier.store.database import open_store

    store, name = open_store(), voter or _user()
    if len(set(models)) < 2:
        raise typer.BadParameter("name at least two different models")
    played = (
        _play_typed(store, models, engine, arena, name, seed)
        if prompts is None
        else _play_file(store, models, prompts, engine, arena, name, seed, limit)
    )
    say(f"votes kept in arena {arena}: {played}; the ratings: luthier arena show --arena {arena}")


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user in this container
        return "somebody"


def _play_file(
    store: Store, models: list[str], prompts: str, engine: str, arena: str, voter: str, seed: int, limit: int | None
) -> int:
    from luthier.cli._print import say
    from luthier.evaluation.arena import pairs_of, prompts_task, rounds

    task = prompts_task(prompts, limit=limit)
    pairs = pairs_of(_collect(store, models, task, engine, limit))
    left = rounds(pairs, voter, arena=arena, seed=seed, store=store)
    if not left:
        say(f"Nothing left to vote on: {voter} has seen all {len(pairs)} pairs.")
    count = 0
    for number, each in enumerate(left, 1):
        voted = _ask(store, each, arena, voter, f"{number}/{len(left)}")
        if voted is None:
            break
        count += voted
    return count


def _play_typed(store: Store, models: list[str], engine: str, arena: str, voter: str, seed: int) -> int:
    """Prompts as they are typed; each goes to two of the models."""
    import random

    from luthier.core.engine import GENERATE, Sampling, require
    from luthier.core.message import user
    from luthier.evaluation.arena import MAX_NEW_TOKENS, Answers, Round, pairs_of
    from luthier.strategies._load import load_many

    opened = load_many(models, engine=engine, store=store)
    draw, count = random.Random(seed), 0
    try:
        for each in opened.values():
            require(each, GENERATE)
        while prompt := _typed("prompt> ").strip():
            answers = []
            for model in draw.sample(sorted(opened), 2):
                (made,) = opened[model].generate([user(prompt)], Sampling(max_new_tokens=MAX_NEW_TOKENS))
                answers.append(Answers(model, opened[model].info.model_digest, "", {prompt: made.text}))
            voted = _ask(store, Round(pairs_of(answers)[0], draw.random() < 0.5), arena, voter, "")
            if voted is None:
                break
            count += voted
    finally:
        for each in opened.values():
            each.close()
    return count


def _ask(store: Store, shown: Round, arena: str, voter: str, where: str) -> int | None:
    """Show, take the vote, keep it: 1 when it was new. None when the voter leaves."""
    from rich.markup import escape
    from rich.panel import Panel

    from luthier.cli import _print
    from luthier.store.battles import record_battles

    console = _print.out()
    console.print(Panel(escape(shown.pair.prompt), title=f"prompt {where}".strip()))
    for name, answer in zip("AB", shown.answers, strict=True):
        console.print(Panel(escape(answer.strip() or "(empty)"), title=name))
    while True:
        said = _typed("better? (a/b/t/s/q) ").strip().lower()
        if said in ("q", "quit", ""):
            return None
        if said in VOTES:
            return record_battles(store, [shown.battle(VOTES[said], voter, arena)])  # type: ignore[arg-type]
        _print.say(HELP)


def _typed(prompt: str) -> str:
    """A line from the terminal or stdin; empty at its end."""
    if sys.stdin.isatty():
        try:
            return input(prompt)
        except (EOFError, KeyboardInterrupt):
            return ""
    return sys.stdin.readline()


def judge(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[A B [C ...] PROMPTS]",
            help="Models, then a task or a file of prompts. Without: the pairs that people voted on in the arena.",
        ),
    ] = None,
    *,
    judge: Annotated[str, typer.Option("--judge", metavar="MODEL", help="The model that judges.")],
    arena: Arena = "arena",
    rubric: Annotated[
        str | None, typer.Option(help="What is better: a text, or a name of the prompt catalogue.")
    ] = None,
    mode: Annotated[
        str, typer.Option(help="write: the judge writes its verdict. score: by probabilities, for small models.")
    ] = "write",
    limit: Limit = None,
    engine: Engine = "auto",
    judge_engine: Annotated[str, typer.Option(help="Engine of the judge.")] = "auto",
    as_json: Json = False,
) -> None:
    """Let a model judge answers in pairs, each pair in both orders. Interrupted, the same command goes on where it stopped."""
    from dataclasses import asdict

    from luthier.cli import _print
    from luthier.core.errors import InputError
    from luthier.evaluation.arena import judge_pairs, open_judge
    from luthier.store.database import open_store

    if mode not in ("write", "score"):
        raise InputError(f"mode must be write or score; got {mode!r}")
    store = open_store()
    pairs = _pairs(store, arguments or [], arena, engine, limit)
    made, voter, opened = open_judge(
        judge,
        rubric=rubric,
        mode=mode,  # type: ignore[arg-type]
        engine=judge_engine,
        arena=arena,
        store=store,
    )
    try:
        with _print.progress() as progress:
            done = judge_pairs(pairs, made, voter, arena=arena, store=store, progress=progress)
    finally:
        opened.close()
    if as_json:
        _print.show_json(asdict(done))
        return
    _print.show(
        f"{done.votes:,} of {len(pairs):,} pairs judged by {judge} in arena {arena} ({done.new:,} new); in {done.inconsistent:,} of the new "
        f"ones the order changed the verdict (a tie), {done.unparsable:,} could not be read"
    )
    _print.show(f"[dim]every reply:[/] {done.log}")
    if done.votes:
        _show_board(_board(store, arena, None, "half"))


def _pairs(store: Store, arguments: list[str], arena: str, engine: str, limit: int | None) -> list[Pair]:
    from luthier.core.errors import InputError
    from luthier.evaluation.arena import pairs_of, prompts_task, references_of, stored_pairs

    if not arguments:
        return stored_pairs(store, arena)[:limit]
    *models, prompts = arguments
    if len(set(models)) < 2:
        raise InputError(
            f"needs two or more models and then a task or a file of prompts; got {' '.join(arguments)}",
            hint="luthier arena judge A B PROMPTS.jsonl --judge J",
        )
    task = prompts_task(prompts, limit=limit)
    return pairs_of(_collect(store, models, task, engine, limit), references_of(task))


def _collect(store: Store, models: list[str], task: object, engine: str, limit: int | None) -> list[Answers]:
    from luthier.cli import _print
    from luthier.evaluation.arena import collect

    out = []
    for model in dict.fromkeys(models):
        with _print.progress() as progress:
            out.append(collect(model, task, limit=limit, engine=engine, store=store, progress=progress))  # type: ignore[arg-type]
    return out


def import_command(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Rows of prompt, model_a, model_b, response_a, response_b, winner.")
    ],
    *,
    arena: Annotated[
        str | None, typer.Option("--arena", metavar="NAME", help="Where to. Default: the file's name.")
    ] = None,
    source: Annotated[str, typer.Option(help="Who voted: human or judge.")] = "human",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out rows that cannot be used.")] = False,
) -> None:
    """Take over votes from a file. Twice the same file counts once."""
    from luthier.cli import _print
    from luthier.core.errors import InputError
    from luthier.evaluation.arena import import_battles

    if source not in ("human", "judge"):
        raise InputError(f"source must be human or judge; got {source!r}")
    done = import_battles(file, arena=arena, source=source, skip_bad=skip_bad)  # type: ignore[arg-type]
    for problem in done.problems[:20]:
        _print.warn(str(problem))
    _print.show(f"{done.rows:,} votes, {done.new:,} of them new, in arena {done.arena}")
    _print.show(f"[dim]ratings:[/] luthier arena show --arena {done.arena}")


def show(
    *,
    arena: Annotated[
        str | None, typer.Option("--arena", metavar="NAME", help="Which collection of votes; left out, the only one.")
    ] = None,
    votes: Annotated[str | None, typer.Option(help="human or judge. Default: human votes where there are any.")] = None,
    ties: Annotated[
        str, typer.Option(help="In Bradley-Terry: half (half a win each) or davidson (modelled).")
    ] = "half",
    html: Annotated[str | None, typer.Option(metavar="FILE", help="Write the board as a page.")] = None,
    png: Annotated[str | None, typer.Option(metavar="FILE", help="Write ratings and win rates as a picture.")] = None,
    as_json: Json = False,
) -> None:
    """Show the ratings of an arena, who beats whom, and how far judges agree with people."""
    from pathlib import Path

    from luthier.cli import _print
    from luthier.evaluation.arena_board import draw, page
    from luthier.store.database import open_store
    from luthier.store.home import write_atomic

    board = _board(open_store(), arena, votes, ties)
    if html is not None:
        write_atomic(Path(html), page(board))
    if png is not None:
        draw(board, Path(png))
    if as_json:
        _print.show_json(board.as_dict())
    else:
        _show_board(board)


def _board(store: Store, arena: str | None, votes: str | None, ties: str) -> ArenaBoard:
    from luthier.core.errors import InputError
    from luthier.evaluation.arena_board import arena_board

    if votes not in (None, "human", "judge"):
        raise InputError(f"votes must be human or judge; got {votes!r}")
    return arena_board(arena, source=votes, ties=ties, store=store)  # type: ignore[arg-type]


def _show_board(board: ArenaBoard) -> None:
    from rich.markup import escape

    from luthier.cli import _print

    rows = [
        (
            number,
            escape(s.name),
            f"[bold]{s.rating:.0f}[/]",
            f"{s.low:.0f} to {s.high:.0f}",
            f"{s.elo:.0f}",
            f"{s.skill:.1f} ± {s.deviation:.1f}",
            s.matches,
            f"{s.wins}-{s.ties}-{s.losses}",
            f"{s.win_rate:.0%}",
        )
        for number, s in enumerate(board.standings, 1)
    ]
    columns = ["", "model", "rating", "95% interval", "Elo", "TrueSkill", "matches", "won-tied-lost", "win rate"]
    skipped = f", {board.skipped:,} skipped" if board.skipped else ""
    title = f"{board.arena}: {board.votes:,} {board.source} votes{skipped}; rating is Bradley-Terry"
    _print.show(_print.table(columns, rows, title=title, right=["", *columns[2:]]))
    _show_win_rates(board)
    if board.agreement:
        told = [
            (
                escape(a.judge),
                a.n,
                *("-" if v is None else f"{v:.2f}" for v in (a.accuracy, a.kappa)),
            )
            for a in board.agreement
        ]
        columns = ["judge", "pairs", "accuracy", "kappa"]
        _print.show(_print.table(columns, told, title="Judges against people", right=columns[1:]))
    for note in board.notes:
        _print.show(f"[dim]{note}[/]")


def _show_win_rates(board: ArenaBoard) -> None:
    from rich.markup import escape

    from luthier.cli import _print

    columns = ["won against", *(str(number) for number in range(1, len(board.standings) + 1))]
    rows = []
    for number, (s, rates) in enumerate(zip(board.standings, board.win_rates, strict=True), 1):
        rows.append((f"{number} {escape(s.name)}", *("" if rate is None else f"{rate:.0%}" for rate in rates)))
    _print.show(_print.table(columns, rows, right=columns[1:]))
