"""llama.cpp's own server in a process of its own, reached through a socket file that only this user can open.

One server holds one base GGUF and any number of LoRA files; each request says which of them applies, so adapters change from one
request to the next without loading anything. A server that ends (killed, out of memory, crashed) fails the requests that are in it, and the
next request starts another one.
"""

from __future__ import annotations

import http.client
import json
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from luthier.core.errors import ContextLengthError, EngineError, InputError

_LOOK_EVERY_S = 0.25
_PROGRAM = Path(__file__).with_name("_llamacpp_process.py")
_HEADERS = {"Content-Type": "application/json", "Connection": "close"}


@dataclass(frozen=True)
class Settings:
    """How a server is started. ``context_length`` is in tokens for each of ``parallel`` requests at once; ``cache_mib`` holds what was
    computed of prompts whose slot another prompt took; ``draft`` is the model that guesses ``draft_tokens`` ahead, ``lookup`` guesses
    from the text itself."""

    model: Path
    context_length: int
    parallel: int
    threads: int
    cache_type: str
    gpu_layers: int
    timeout_s: float
    cache_mib: int = 0
    draft: Path | None = None
    draft_tokens: int = 8
    lookup: bool = False


class _Connection(http.client.HTTPConnection):
    """One request over a socket file. A connection is not used again: the server may close an idle one just then."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("llama.cpp", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Open the socket file."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))

    def wait(self, timeout_s: float) -> bool:
        """Whether an answer begins within ``timeout_s``."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(1000 * timeout_s))


class _Running:
    """A started server and how to reach it. It is killed when nothing refers to it any more, at the latest when Python ends."""

    def __init__(self, settings: Settings, loras: tuple[Path, ...]) -> None:
        self.settings, self.loras = settings, loras
        self.folder = Path(tempfile.mkdtemp(prefix="luthier-"))
        self.socket = self.folder / "server.sock"
        try:
            self.process = _start(settings, loras, self.socket)
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        weakref.finalize(self, _stop, self.process, self.folder)

    def connection(self, timeout_s: float | None = None) -> _Connection:
        """A connection for one request."""
        return _Connection(self.socket, timeout_s or self.settings.timeout_s)

    def applied(self, lora: Path | None) -> dict[str, Any]:
        """The field of a request that applies one LoRA file, or none."""
        return {"lora": [{"id": place, "scale": float(path == lora)} for place, path in enumerate(self.loras)]}

    def how_it_ended(self) -> str:
        """What is known of its end; "" while it lives."""
        code = self.process.poll()
        if code is None:
            return ""
        how = f"exit status {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        return f"llama.cpp's process ended ({how}{_last_words(self.folder)})"


def _start(settings: Settings, loras: tuple[Path, ...], socket_file: Path) -> subprocess.Popen[str]:
    asked = {**asdict(settings), "loras": loras, "socket": socket_file}
    if loras:  # llama.cpp keeps no note of which adapter had computed what it kept
        asked["cache_mib"] = 0
    with (socket_file.parent / "stderr.txt").open("w") as stderr:
        process = subprocess.Popen(  # -P: the files beside the program are named like packages
            [sys.executable, "-P", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        try:
            process.stdin.write(json.dumps(asked, default=str) + "\n")
            process.stdin.flush()
            said = json.loads(process.stdout.readline() or "{}")
        except (OSError, ValueError):
            said = {}
        if "ready" in said:
            return process
        error = said.get("error") or f"its process ended{_last_words(socket_file.parent)}"
        with_loras = f" with {', '.join(path.parent.name[:12] for path in loras)}" if loras else ""
        raise EngineError(
            f"llama.cpp cannot load {settings.model}{with_loras}: {error}",
            hint="is there memory enough for the context (engine options context_length and parallel)?",
        )
    except BaseException:
        _end(process)
        raise


def _stop(process: subprocess.Popen[str], folder: Path) -> None:
    _end(process)
    shutil.rmtree(folder, ignore_errors=True)


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _last_words(folder: Path) -> str:
    """The last line that the process wrote to stderr, after a colon."""
    try:
        lines = (folder / "stderr.txt").read_text(errors="replace").split("\n")
    except OSError:
        return ""
    said = [line.strip() for line in lines if line.strip()]
    return f": {said[-1][:300]}" if said else ""


class LlamaServer:
    """Starts at the first request, so that all adapters that are opened together are known by then.

    An adapter that comes later starts a second server at its first request, which shares the base's pages (the file is mapped, not read).
    Until that one is ready the others go on with the first, which ends when its requests are finished.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._lock, self._starting = threading.Lock(), threading.Lock()
        self._users: Counter[Path | None] = Counter()
        self._running: _Running | None = None

    def join(self, lora: Path | None) -> None:
        """One more engine, which answers with this LoRA file."""
        with self._lock:
            self._users[lora] += 1

    def leave(self, lora: Path | None) -> None:
        """One engine less; the last one stops the server, after the requests that are in it."""
        with self._lock:
            self._users[lora] -= 1
            self._users = +self._users
            if not self._users:
                self._running = None

    def post(self, path: str, body: Mapping[str, Any], lora: Path | None = None) -> dict[str, Any]:
        """One request, one JSON answer.

        Raises InputError for what llama.cpp refuses, ContextLengthError for a prompt that does not fit, EngineError for anything else.
        """
        with self._connected(path, body, lora) as connection:
            return _answer(connection)

    def post_unless(
        self, stopped: threading.Event, path: str, body: Mapping[str, Any], lora: Path | None = None
    ) -> dict[str, Any] | None:
        """``post``, or None when ``stopped`` was set before the answer came, which ends the request."""
        with self._connected(path, body, lora) as connection:
            return _answer(connection) if _awaited(connection, stopped, self.settings.timeout_s) else None

    def events(
        self, path: str, body: Mapping[str, Any], lora: Path | None = None
    ) -> Generator[dict[str, Any], None, None]:
        """One request, its answer in server-sent events. Ending early cancels the request."""
        with self._connected(path, {**body, "stream": True}, lora) as connection:
            response = connection.getresponse()
            if response.status != 200:
                _checked(response.status, response.read())
            rest = b""
            while more := response.read1(65536):
                *lines, rest = (rest + more).split(b"\n")
                for line in lines:
                    if line.startswith(b"data: ") and line != b"data: [DONE]":
                        yield _checked(200, line[6:])

    def healthy(self, timeout_s: float) -> None:
        """Start the server if none lives; raises EngineError when it does not say that it is well."""
        with self._lock:
            known = next(iter(self._users), None)
        running = self._take(known)
        with self._explained(running):
            connection = running.connection(timeout_s)
            try:
                connection.request("GET", "/health")
                _answer(connection)
            finally:
                connection.close()

    @contextmanager
    def _connected(self, path: str, body: Mapping[str, Any], lora: Path | None) -> Iterator[_Connection]:
        running = self._take(lora)
        with self._explained(running):
            connection = running.connection()
            try:
                connection.request("POST", path, orjson.dumps({**body, **running.applied(lora)}), _HEADERS)
                yield connection
            finally:
                connection.close()

    @contextmanager
    def _explained(self, running: _Running) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            raise EngineError(
                f"llama.cpp said nothing for {self.settings.timeout_s:g} s",
                hint="raise the engine option timeout_s",
                retryable=True,
            ) from error
        except (http.client.HTTPException, OSError, ValueError) as error:
            ended = running.how_it_ended() or f"llama.cpp broke off: {str(error) or type(error).__name__}"
            if isinstance(error, FileNotFoundError | ConnectionRefusedError) or running.process.poll() is not None:
                with self._lock:
                    self._running = None if self._running is running else self._running
            raise EngineError(ended, retryable=True) from error

    def _take(self, lora: Path | None) -> _Running:
        """A server that lives and has this LoRA file."""
        found = self._living(lora)
        if found is not None:
            return found
        with self._starting:
            found = self._living(lora)
            if found is not None:
                return found
            with self._lock:
                wanted = tuple(path for path in self._users if path is not None)
            made = _Running(self.settings, wanted)
            with self._lock:
                self._running = made if self._users else None
            return made

    def _living(self, lora: Path | None) -> _Running | None:
        with self._lock:
            if lora not in self._users:
                raise EngineError("the engine was closed")
            found = self._running
        if found is None or found.process.poll() is not None or (lora is not None and lora not in found.loras):
            return None
        return found


def _answer(connection: http.client.HTTPConnection) -> dict[str, Any]:
    response = connection.getresponse()
    return _checked(response.status, response.read())


def _awaited(connection: _Connection, stopped: threading.Event, timeout_s: float) -> bool:
    """Wait for an answer. False when ``stopped`` came first; raises TimeoutError after ``timeout_s``."""
    until = time.monotonic() + timeout_s
    while not connection.wait(_LOOK_EVERY_S):
        if stopped.is_set():
            return False
        if time.monotonic() > until:
            raise TimeoutError
    return True


def _checked(status: int, content: bytes) -> dict[str, Any]:
    answer: dict[str, Any] = orjson.loads(content)
    error = answer.get("error")
    if status == 200 and not error:
        return answer
    told = error if isinstance(error, dict) else {"message": error or str(answer)[:300]}
    message = told.get("message", str(error))
    if told.get("type") == "exceed_context_size_error":
        raise ContextLengthError(
            f"the prompt is too long for the engine: {message}", hint="raise its option context_length"
        )
    if told.get("type") == "invalid_request_error" or status == 400:
        raise InputError(f"llama.cpp refused the request: {message}")
    raise EngineError(f"llama.cpp failed: {message}", retryable=status == 503)
