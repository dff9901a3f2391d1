"""llama.cpp's own server inside this process, reached through a socket file that only this user can open.

One server holds one base GGUF and any number of LoRA files; each request says which of them applies, so adapters change from one
request to the next without loading anything.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from luthier.core.errors import EngineError, InputError


@dataclass(frozen=True)
class Settings:
    """How a server is started. ``context_length`` is in tokens for each of ``parallel`` requests at once."""

    model: Path
    context_length: int
    parallel: int
    threads: int
    cache_type: str
    gpu_layers: int
    timeout_s: float


class _Running:
    """A started server and how to reach it. It stops when nothing refers to it any more, at the latest when Python ends."""

    def __init__(self, settings: Settings, loras: tuple[Path, ...]) -> None:
        self.loras = loras
        folder = Path(tempfile.mkdtemp(prefix="luthier-"))
        socket = folder / "server.sock"  # llama.cpp takes an address that ends in .sock as a socket file
        try:
            server = [_start(settings, loras, socket)]
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self.http = httpx.Client(
            # a connection a request: an idle one may be closed by the server just when it is used again
            transport=httpx.HTTPTransport(uds=str(socket), limits=httpx.Limits(max_keepalive_connections=0)),
            base_url="http://llama.cpp",
            timeout=httpx.Timeout(settings.timeout_s),
        )
        weakref.finalize(self, _stop, server, self.http, folder)


def _stop(server: list[Any], http: httpx.Client, folder: Path) -> None:
    http.close()
    server.clear()  # its destructor stops the server's threads
    shutil.rmtree(folder, ignore_errors=True)


def _start(settings: Settings, loras: tuple[Path, ...], socket: Path) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(settings.model)
    params.hostnames, params.port = [str(socket)], 0
    params.verbosity = -1
    params.n_ctx, params.n_parallel = settings.context_length * settings.parallel, settings.parallel
    params.kv_unified, params.fit_params, params.warmup = False, False, False
    params.cache_ram_mib, params.cache_idle_slots, params.ctx_shift = 0, False, False
    params.ui, params.endpoint_slots, params.endpoint_props = False, False, False
    params.n_threads_http = settings.parallel + 4
    params.n_gpu_layers = settings.gpu_layers
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings.threads
    kind = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{settings.cache_type.upper()}")
    params.cache_type_k = params.cache_type_v = kind
    if settings.cache_type == "f32":  # flash attention would round to f16 all the same
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(path), 0.0) for path in loras]
    params.lora_init_without_apply = True
    try:
        return xllamacpp.Server(params)
    except RuntimeError as error:
        with_loras = f" with {', '.join(path.parent.name[:12] for path in loras)}" if loras else ""
        raise EngineError(
            f"llama.cpp cannot load {settings.model}{with_loras}: {error}",
            hint="is there memory enough for the context (engine options context_length and parallel)?",
        ) from error


class LlamaServer:
    """Starts at the first request, so that all adapters that are opened together are known by then.

    An adapter that comes later starts a second server, which shares the base's pages (the file is mapped, not read); requests
    in the first one are finished there.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._loras: list[Path] = []
        self._running: _Running | None = None
        self._users = 0

    def join(self, lora: Path | None) -> int | None:
        """One more engine; returns the number by which requests name its LoRA file."""
        with self._lock:
            self._users += 1
            if lora is None:
                return None
            if lora not in self._loras:
                self._loras.append(lora)
            return self._loras.index(lora)

    def leave(self) -> None:
        """One engine less; the last one stops the server, after the requests that are in it."""
        with self._lock:
            self._users -= 1
            if self._users < 1:
                self._running = None
                self._loras.clear()

    def lora(self, number: int | None) -> list[dict[str, Any]]:
        """A request's ``lora`` field that applies one file, or none of them."""
        with self._lock:
            count = len(self._loras)
        return [{"id": each, "scale": float(each == number)} for each in range(count)]

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """One request, one JSON answer. Raises InputError for a prompt that does not fit, EngineError for anything else."""
        with self._connected() as http:
            response = http.post(path, json=body)
            return _checked(response.status_code, response.content)

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """One request, its answer in server-sent events. Ending early cancels the request."""
        with self._connected() as http, http.stream("POST", path, json={**body, "stream": True}) as response:
            if response.status_code != 200:
                _checked(response.status_code, response.read())
            for line in response.iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    yield _checked(200, line[6:])

    @contextmanager
    def _connected(self) -> Iterator[httpx.Client]:
        running = self._take()
        try:
            yield running.http
        except httpx.TimeoutException as error:
            raise EngineError(
                f"llama.cpp said nothing for {self.settings.timeout_s:g} s", hint="raise the engine option timeout_s"
            ) from error
        except (httpx.HTTPError, ValueError) as error:
            raise EngineError(f"llama.cpp broke off: {str(error) or type(error).__name__}") from error

    def _take(self) -> _Running:
        with self._lock:
            if self._users < 1:
                raise EngineError("the engine was closed")
            wanted = tuple(self._loras)
            if self._running is None or self._running.loras != wanted:
                self._running = _Running(self.settings, wanted)
            return self._running


def _checked(status: int, content: str | bytes) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(content)
    error = answer.get("error")
    if status == 200 and not error:
        return answer
    message = error.get("message", str(error)) if isinstance(error, dict) else str(answer)[:300]
    if isinstance(error, dict) and error.get("type") == "exceed_context_size_error":
        raise InputError(f"the prompt is too long for the engine: {message}", hint="raise its option context_length")
    raise EngineError(f"llama.cpp refused the request: {message}")
