from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from luthier.cli import chat, main
from luthier.core.engine import GENERATE, STREAM, Delta, EngineInfo, Generation, Sampling
from luthier.core.errors import InputError
from luthier.core.message import Message


class Echo:
    """Says how many messages it was given and what the last one was; refuses when there are more than ``most``."""

    def __init__(self, most: int = 99, **info: Any) -> None:
        self.info = EngineInfo("echo", "echo", frozenset({GENERATE, STREAM}), **info)
        self.most = most
        self.asked: list[tuple[Message, ...]] = []
        self.closed = False

    def stream(self, prompt: Any, sampling: Sampling) -> Iterator[Delta]:
        self.asked.append(prompt)
        self.sampling = sampling
        if len(prompt) > self.most:
            raise InputError(f"the prompt has {len(prompt)} tokens; echo reads {self.most} in all")
        pieces = [str(len(prompt)), " ", prompt[-1].content]
        yield from map(Delta, pieces)
        yield Delta("", Generation("".join(pieces), (), (), "stop", completion_tokens=3, latency_s=1.0))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def echo(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``talk(lines, *options, engine=...)`` pipes lines into ``luthier chat echo``; returns (exit code, engine)."""
    import luthier.strategies._load as loading

    def talk(text: str, *options: str, engine: Echo | None = None) -> tuple[int, Echo]:
        engine = engine or Echo()
        monkeypatch.setattr(loading, "load", lambda name, **_: engine)
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        try:
            main(["chat", "echo", *options])
        except SystemExit as ended:
            return int(ended.code or 0), engine
        return 0, engine

    return talk


def test_lines_in_answers_out(echo: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, engine = echo("hello\n\nand again\n")
    said = capsys.readouterr()
    assert (code, said.out, said.err) == (0, "1 hello\n3 and again\n", "")
    assert [m.role for m in engine.asked[1]] == ["user", "assistant", "user"]
    assert engine.asked[1][1].content == "1 hello"
    assert engine.closed
    assert engine.sampling.temperature == chat.TALKATIVE


def test_reset_and_exit(echo: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, engine = echo("a\n/reset\nb\n/exit\nc\n", "--system", "be brief")
    assert capsys.readouterr().out == "2 a\n2 b\n"
    assert code == 0
    assert engine.asked[1][0] == Message("system", "be brief")


def test_parameters(echo: Any) -> None:
    options = [
        "--temperature",
        "0.2",
        "--top-p",
        "0.5",
        "--top-k",
        "3",
        "--repetition-penalty",
        "1.5",
        "--max-tokens",
        "7",
        "--seed",
        "5",
    ]
    _, engine = echo("a\n", *options)
    assert engine.sampling == Sampling(7, 0.2, 0.5, 3, 1.5, 5)


def test_a_model_bound_to_a_task_is_asked_question_by_question(echo: Any, capsys: pytest.CaptureFixture[str]) -> None:
    _, engine = echo("a\nb\n", engine=Echo(prompt_digest="p" * 64))
    assert capsys.readouterr().out == "1 a\n1 b\n"
    assert engine.sampling.temperature == 0.0


def test_a_conversation_that_is_too_long_says_what_to_do(echo: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, engine = echo("a\nb\n/reset\nc\n", engine=Echo(most=2))
    said = capsys.readouterr()
    assert said.out == "1 a\n1 c\n"
    assert "echo reads 2" in said.err
    assert "/reset" in said.err
    assert code == 1
    assert len(engine.asked[-1]) == 1


def test_wrong_parameters_and_models(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in ((["fake", "--temperature", "9"], "temperature"), (["no-such-model"], "no-such-model")):
        with pytest.raises(SystemExit) as ended:
            main(["chat", *arguments])
        assert ended.value.code == 2
        assert words in capsys.readouterr().err


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(home: Path) -> None:
    talk = chat._Talk(Echo(), Sampling(), None, forgetful=False)
    with chat._interruptible() as stopped:
        pieces = []
        for piece, _ in talk.answer("hello", stopped):
            pieces.append(piece)
            signal.raise_signal(signal.SIGINT)
        assert stopped.is_set()
    assert pieces == ["1"]
    assert talk.turns == (Message("user", "hello"), Message("assistant", "1"))


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), chat._interruptible():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_real_terminal(home: Path) -> None:
    """Typed into a pseudo-terminal: prompt, answer, Ctrl-D leaves."""
    mine, theirs = pty.openpty()
    # a session's first terminal is the one whose Ctrl-C it hears
    code = (
        "import os; os.open(os.ttyname(0), os.O_RDWR)\n"
        "from luthier.cli import main; main(['chat', 'fake', '--temperature', '0'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "TERM": "dumb"},
    )
    os.close(theirs)
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    screen = b""

    def wait_for(text: bytes, again: bytes = b"") -> bytes:
        nonlocal screen
        while text not in screen:
            if again and not select.select([mine], [], [], 2)[0]:
                os.write(mine, again)  # readline misses a Ctrl-C between its prompt and its first look
                continue
            screen += os.read(mine, 4096)
        before, _, screen = screen.partition(text)
        return before

    try:
        assert b"/reset" in wait_for(b"\n> ")
        os.write(mine, b"hello\n")
        wait_for(b"tokens/s")
        wait_for(b"> ")
        os.write(mine, b"\x03")
        wait_for(b"Ctrl-D leaves", again=b"\x03")
        wait_for(b"> ")
        os.write(mine, b"\x04")
        assert process.wait(60) == 0
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        os.close(mine)
