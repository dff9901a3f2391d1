"""``luthier chat``: talk to a model in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import threading

    from luthier.core.engine import Engine, Generation, Sampling
    from luthier.core.message import Conversation

TALKATIVE = 0.7
HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer."


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("chat")(chat)


def chat(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model, adapter or endpoint (luthier models), or kb:NAME.")
    ],
    *,
    engine: Annotated[str, typer.Option(help="auto, torch, llamacpp, openai or fake.")] = "auto",
    system: Annotated[str | None, typer.Option(help="A system message before the conversation.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 is greedy. Default: 0.7, or 0 for a model that is bound to a task.")
    ] = None,
    top_p: Annotated[float, typer.Option(help="Draw among the likeliest tokens that make up this share.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Draw among this many; 0 is off.")] = 0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: what was said is less likely again.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="The most tokens of an answer.")] = 512,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same answers.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Without the prompt that the model was tuned with.")] = False,
) -> None:
    """Talk to a model, streaming. Without a terminal each line of stdin is a turn, and only the answers are printed."""
    from luthier.core.engine import GENERATE, Sampling, require
    from luthier.gateway.service import Price, serve_as
    from luthier.store.database import open_store
    from luthier.strategies._load import load

    store = open_store()
    opened = load(model, engine=engine, store=store, raw=raw)
    try:
        require(opened, GENERATE)
        asked, task = opened, False
        if not raw:  # the way it is served: bound to its task, if it has one
            served = serve_as(model, opened, store, Price())
            asked, task = served.engine, served.temperature == 0.0 and system is None
        sampling = Sampling(
            max_new_tokens=max_tokens,
            temperature=(0.0 if task else TALKATIVE) if temperature is None else temperature,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        failed = _talk(_Talk(asked, sampling, system, forgetful=task))
    finally:
        opened.close()
    if failed:
        raise typer.Exit(1)


class _Talk:
    """A conversation and what it is held with. A ``forgetful`` one asks each question by itself, as its task does."""

    def __init__(self, engine: Engine, sampling: Sampling, system: str | None, *, forgetful: bool) -> None:
        from luthier.core.message import Message

        self.engine = engine
        self.sampling = sampling
        self.forgetful = forgetful
        self._opening: Conversation = (Message("system", system),) if system is not None else ()
        self.turns: Conversation = self._opening

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.turns = self._opening

    def answer(self, text: str, stopped: threading.Event) -> Iterator[tuple[str, Generation | None]]:
        """The answer's pieces. Afterwards the turn is part of the conversation; a stopped one as far as it came.

        Raises LuthierError, and then the turn is not.
        """
        from luthier.core.engine import STREAM
        from luthier.core.message import Message

        asked = (*self.turns, Message("user", text))
        said = ""
        if STREAM in self.engine.info.capabilities:
            deltas = self.engine.stream(asked, self.sampling)
            for delta in deltas:
                said += delta.text
                yield delta.text, delta.generation
                if stopped.is_set():
                    break
            close = getattr(deltas, "close", None)
            if close is not None:
                close()
        else:
            (generation,) = self.engine.generate([asked], self.sampling)
            said = generation.text
            yield said, generation
        if said and not self.forgetful:
            self.turns = (*asked, Message("assistant", said))


def _talk(talk: _Talk) -> bool:
    """Read and answer until the end; whether any turn failed."""
    from luthier.cli._print import say

    terminal = sys.stdin.isatty()
    if terminal:
        info = talk.engine.info
        say(f"[bold]{info.model}[/] on {info.engine}. {HELP}")
        if talk.forgetful:
            say(
                "[dim]This model answers one task: each line is a question by itself. --raw leaves the task's prompt out.[/]"
            )
    failed = False
    for line in _lines(terminal):
        text = line.strip()
        if text in ("/exit", "/quit"):
            break
        if text == "/reset":
            talk.reset()
            say("[dim]forgotten[/]")
        elif text in ("/help", "/?"):
            say(HELP)
        elif text:
            failed = not _turn(talk, text, terminal) or failed
    return failed


def _turn(talk: _Talk, text: str, terminal: bool) -> bool:
    """Ask, and print the answer as it comes. False when the engine refused."""
    from luthier.cli._print import err, say
    from luthier.core.errors import LuthierError

    generation = None
    begun = False
    try:
        with _interruptible() as stopped:
            for piece, made in talk.answer(text, stopped):
                sys.stdout.write(piece)
                sys.stdout.flush()
                begun = begun or bool(piece)
                generation = made or generation
        sys.stdout.write("\n")
        if generation is not None and generation.citations:
            from luthier.cli._kb_ask import show_citations

            show_citations(generation)
        sys.stdout.flush()
    except LuthierError as error:
        if begun:
            sys.stdout.write("\n")
            sys.stdout.flush()
        err().print(f"error: {error}", markup=False)
        if len(talk.turns) > 1:
            err().print(f"The conversation has {len(talk.turns)} messages; if it is too long, /reset starts a new one.")
        return False
    if stopped.is_set():
        say("[dim]stopped[/]")
    elif terminal and generation is not None and generation.latency_s > 0:
        rate = generation.completion_tokens / generation.latency_s
        first = generation.first_token_s
        cut = "; cut at --max-tokens" if generation.finish_reason == "length" else ""
        say(f"[dim]{generation.completion_tokens} tokens, first after {first:.2f} s, {rate:.0f} tokens/s{cut}[/]")
    return True


def _lines(terminal: bool) -> Iterator[str]:
    """What is typed (Ctrl-C clears the line, Ctrl-D ends), or the lines of stdin."""
    if not terminal:
        yield from sys.stdin
        return
    import importlib.util

    from luthier.cli._print import say

    if importlib.util.find_spec("readline"):
        importlib.import_module("readline")  # gives input() its editing and history
    while True:
        try:
            yield input("> ")
        except EOFError:
            sys.stdout.write("\n")
            return
        except KeyboardInterrupt:
            say(f"\n[dim]{HELP}[/]")


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Ctrl-C sets the event, so that the engine ends between two tokens; a second one interrupts at once."""
    import signal
    import threading

    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(number: int, frame: object) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
