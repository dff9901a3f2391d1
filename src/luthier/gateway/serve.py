"""Serve models over HTTP: ``serve`` blocks until a signal, ``running`` serves while a block runs."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import uvicorn

from luthier.core.engine import GENERATE, Engine
from luthier.core.errors import InputError, NotFoundError
from luthier.engines._open import UNSTORED
from luthier.gateway.access.keys import check_bind, is_loopback, read_keys
from luthier.gateway.app import build_app
from luthier.gateway.batch.worker import BatchWorker
from luthier.gateway.config import GatewayConfig, read_config
from luthier.gateway.connections import Connection, raise_file_limit
from luthier.gateway.reload import Reloader
from luthier.gateway.service import Service, read_prices
from luthier.gateway.targets.registry import ModelConfig, Registry
from luthier.gateway.targets.stock import Stock
from luthier.store.database import Store, open_store
from luthier.store.keys import count_active
from luthier.store.models import adapters_on, find, list_models

Models = str | Sequence[str] | Mapping[str, Engine | Sequence[Engine]]
KEEP_ALIVE_S = 30

logger = logging.getLogger("luthier.gateway")


@dataclass(frozen=True)
class Settings:
    """How to serve.

    ``engine`` and ``options`` choose what answers. ``api_key_env`` names the environment variable with the keys (separated by
    commas), ``keys`` asks for those of the store (``luthier keys``), with their limits; without either the server is reachable from this
    machine only. ``max_concurrent`` requests are computed at once and
    ``max_queue`` wait; more get a 429. ``adapters_of`` serves every adapter of these bases, and the bases. ``price`` holds ``IN,OUT`` or ``MODEL=IN,OUT`` per million tokens. On SIGTERM or Ctrl-C
    running requests get ``grace_s`` seconds to finish. ``config`` is a YAML file, or a mapping, with the rest: see ``gateway.config``.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    engine: str = "auto"
    options: Mapping[str, Any] | None = None
    api_key_env: str | None = None
    keys: bool = False
    max_concurrent: int = 8
    max_queue: int = 128
    price: Sequence[str] = ()
    grace_s: float = 20.0
    store: Store | Path | str | None = None
    adapters_of: Sequence[str] = ()
    config: Path | str | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        checks = (
            ("port", 0 <= self.port <= 65535, "between 0 and 65535 (0 chooses a free one)"),
            ("max_concurrent", self.max_concurrent >= 1, ">= 1"),
            ("max_queue", self.max_queue >= 0, ">= 0"),
            ("grace_s", self.grace_s >= 0, ">= 0"),
        )
        for name, good, allowed in checks:
            if not good:
                raise InputError(f"{name} must be {allowed}; got {getattr(self, name)!r}")


@dataclass(frozen=True)
class Address:
    """Where a server is: ``base_url`` is what OpenAI clients want."""

    base_url: str
    service: Service

    def heading(self) -> str:
        """The address, and the models with their digests."""
        listed = [each.as_dict() for each in self.service.models.values()]
        width = max(len(each["id"]) for each in listed)
        lines = [f"Serving on {self.base_url}", ""]
        for each in listed:
            said = [f"{each['id']:<{width}}", each["kind"] or "model", f"engine {each['engine']}"]
            said += [f"digest {each['model_digest'][:12]}"] if each["model_digest"] else []
            if each["base_digest"] not in ("", each["model_digest"]):
                said.append(f"on base {each['base_digest'][:12]}")
            said += [f"{len(each['labels'])} labels"] if each["labels"] else []
            lines.append("  ".join(said))
        return "\n".join(lines)

    def examples(self) -> str:
        """How to ask, with curl and with the openai client."""
        served = list(self.service.models.values())
        first = next((each for each in served if GENERATE in each.engine.info.capabilities), served[0])
        key, header = "not-needed", ""
        if self.service.keys:
            key, header = "YOUR_KEY", " -H 'Authorization: Bearer YOUR_KEY'"
        if GENERATE in first.engine.info.capabilities:
            messages = [{"role": "user", "content": "Hello"}]
            path, body = "chat/completions", {"model": first.name, "messages": messages}
            call = f"client.chat.completions.create(model={first.name!r}, messages={messages!r})"
            shown = ".choices[0].message.content"
        else:
            path, body = "embeddings", {"model": first.name, "input": "Hello"}
            call, shown = f"client.embeddings.create(model={first.name!r}, input='Hello')", ".data[0].embedding"
        return "\n".join((
            f"curl {self.base_url}/{path} -H 'Content-Type: application/json'{header} -d '{json.dumps(body)}'",
            "",
            "from openai import OpenAI",
            f"client = OpenAI(base_url={self.base_url!r}, api_key={key!r})",
            f"print({call}{shown})",
        ))  # fmt: skip


def serve(models: Models, *, announce: Callable[[Address], None] | None = None, **settings: Any) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish running requests and write their traces.

    ``models`` are names that ``luthier.load`` knows (adapters of one base share its memory), patterns of names such as ``tickets-*``, or
    open engines by name, which stay open. ``settings`` are the fields of ``Settings``: host, port, engine, options, api_key_env,
    max_concurrent, max_queue, price, grace_s, store, adapters_of, config, keys. ``announce`` is called when the server answers; the default writes the address and examples to stdout.

    Raises InputError for a public host without keys, a port that is in use, and bad settings, before any model is loaded;
    NotFoundError for unknown models.
    """
    with _prepared(models, settings) as (server, address):
        server.ready = lambda: (announce or _announce)(address)
        server.run_here()


@contextmanager
def running(models: Models, **settings: Any) -> Iterator[str]:
    """Serve in a thread while the block runs; yields the base URL (``http://127.0.0.1:PORT/v1``).

    Like ``serve``, except that ``port`` is a free one when it is not given.
    """
    with _prepared(models, {"port": 0, **settings}) as (server, address):
        started = threading.Event()
        server.ready = started.set
        thread = threading.Thread(target=_run, args=(server, started), name="luthier-server", daemon=True)
        thread.start()
        started.wait()
        try:
            if not server.started:
                raise InputError(f"the server could not start on {address.base_url}")
            yield address.base_url
        finally:
            server.should_exit = True
            thread.join()


def _announce(address: Address) -> None:
    sys.stdout.write(f"{address.heading()}\n\n{address.examples()}\n")
    sys.stdout.flush()


class _Server(uvicorn.Server):
    """uvicorn on a socket of ours: says when it answers, and returns after a signal instead of dying of it."""

    def __init__(self, config: uvicorn.Config, service: Service, listening: socket.socket) -> None:
        super().__init__(config)
        self.service = service
        self.listening = listening
        self.ready: Callable[[], object] = lambda: None
        self._loop: asyncio.AbstractEventLoop | None = None

    def run_here(self) -> None:
        """Serve in this thread until told to stop."""
        self.run(sockets=[self.listening])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        self.service.begin()
        self.service.batches = BatchWorker(self.service)
        self.service.batches.start()
        self._loop = asyncio.get_running_loop()
        self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no new work, finish what runs."""
        if self.service.batches is not None:
            await self.service.batches.stop()
        self.service.close_gates()
        await super().shutdown(sockets)
        self.service.end()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM while serving (in the main thread only, where Python allows it)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGINT, signal.SIGTERM)}
        if hasattr(signal, "SIGHUP"):
            before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._reload)
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _reload(self, number: int, frame: object) -> None:
        """SIGHUP: load the configuration file anew."""
        reloader, loop = self.service.reloader, self._loop
        if reloader is not None and loop is not None:
            loop.call_soon_threadsafe(lambda: loop.create_task(reloader.reload()))


def _run(server: _Server, started: threading.Event) -> None:
    try:
        server.run_here()
    finally:
        started.set()


@contextmanager
def _prepared(models: Models, settings: Mapping[str, Any]) -> Iterator[tuple[_Server, Address]]:
    """A server that is bound and loaded but does not run yet. The cheap checks come first."""
    chosen = Settings(**settings)
    check_bind(chosen.host, asks=bool(read_keys(chosen.api_key_env)) or chosen.keys)
    config = read_config(chosen.config)
    store = chosen.store if isinstance(chosen.store, Store) else open_store(chosen.store)
    keys = read_keys(chosen.api_key_env, store=store if chosen.keys else None)
    _say_of_keys(store, chosen)
    stock = _stock(models, chosen, store, config)
    stock.check(config)
    with ExitStack() as stack:
        listening = stack.enter_context(bind(chosen.host, chosen.port))
        registry = Registry(store)
        stack.callback(registry.close)
        stock.open(registry, config)
        service = Service.open(
            registry, store, keys, max_concurrent=chosen.max_concurrent, max_queue=chosen.max_queue, config=config
        )
        stack.callback(service.close)
        path = Path(chosen.config).absolute() if isinstance(chosen.config, str | Path) else None
        service.reloader = Reloader(service, stock, path)
        yield _server(service, chosen, listening), Address(_base_url(chosen.host, listening), service)


def _say_of_keys(store: Store, chosen: Settings) -> None:
    """Say it loudly when keys were made and are not asked for, or are asked for and nobody has one."""
    active = count_active(store)
    if active and not chosen.keys:
        logger.warning(
            "the store has %d keys, and this server does not ask for them: no tenant, limit or budget holds here (--keys)",
            active,
        )
    if chosen.keys and not active and not chosen.api_key_env:
        logger.warning("no key is there yet, so everything will be refused: luthier keys create TENANT")


def _server(service: Service, chosen: Settings, listening: socket.socket) -> _Server:
    config = uvicorn.Config(
        build_app(service, chosen.host),
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ws="none",
        http=type("Connection", (Connection,), {"most": raise_file_limit()}),
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=round(chosen.grace_s),
    )
    return _Server(config, service, listening)


def _stock(models: Models, chosen: Settings, store: Store, config: GatewayConfig) -> Stock:
    """What is named to the server itself. Raises InputError, NotFoundError."""
    names = _names(models, chosen.adapters_of, store, required=not config.models)
    prices = read_prices(chosen.price, [*names, *config.models])
    held: dict[str, Sequence[Engine]] = {}
    if isinstance(models, Mapping):
        held = {name: list(given) if isinstance(given, Sequence) else [given] for name, given in models.items()}
    named = {name: ModelConfig(price=prices[name]) if name in prices else ModelConfig() for name in names}
    if not held:
        opens = {"engine": chosen.engine, "options": chosen.options}
        named = {name: said.model_copy(update=opens) for name, said in named.items()}
    return Stock(named, held, prices)


def _names(models: Models, adapters_of: Sequence[str], store: Store, *, required: bool = True) -> list[str]:
    """The names to serve: patterns and bases written out. Raises InputError, NotFoundError."""
    given = [models] if isinstance(models, str) else list(models)
    twice = sorted({name for name in given if given.count(name) > 1})
    if twice:
        raise InputError(f"models: {', '.join(twice)} is named twice")
    if isinstance(models, Mapping):
        if adapters_of:
            raise InputError("adapters_of goes with names; got open engines, which are served as they are")
        return given
    names: dict[str, None] = {}
    for name in given:
        names |= dict.fromkeys(_matching(store, name) if _is_pattern(name) else [name])
    for base in adapters_of:
        names |= dict.fromkeys([base, *adapters_on(store, find(store, base))])
    if not names and required:
        raise InputError("models must name at least one model to serve; got none", hint="luthier models")
    return list(names)


def _is_pattern(name: str) -> bool:
    return bool(set("*?[") & set(name)) and name.split(":", 1)[0] not in UNSTORED


def _matching(store: Store, pattern: str) -> list[str]:
    """The models that can answer and whose names fit a shell pattern."""
    known = [record.name for record in list_models(store)]
    found = [name for name in known if fnmatchcase(name, pattern)]
    if not found:
        raise NotFoundError(f"no model is called like {pattern!r}. Here are: {', '.join(sorted(known)) or 'none yet'}")
    return found


@contextmanager
def bind(host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket; port 0 is a free one. Clients that come before the server is ready wait.

    Raises InputError when the port is in use (naming a free one), not allowed, or the host is not of this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise InputError(f"host must be an address of this machine; {host!r} is not known: {error}") from error
    family, kind, protocol, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    with socket.socket(family, kind, protocol) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
            listening.listen(1024)
        except OSError as error:
            raise _not_bound(host, port, family, error) from error
        yield listening


def _not_bound(host: str, port: int, family: int, error: OSError) -> InputError:
    if error.errno == errno.EADDRINUSE:
        free = _free_port(host, family)
        return InputError(
            f"port {port} on {host} is in use by another program",
            hint=f"end that one, or take a free port: luthier serve ... --port {free}",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return InputError(f"port {port} needs more rights than this user has", hint="luthier serve ... --port 8000")
    return InputError(f"host must be an address of this machine; cannot listen on {host}:{port}: {error.strerror}")


def _free_port(host: str, family: int) -> int:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _base_url(host: str, listening: socket.socket) -> str:
    address, port = listening.getsockname()[:2]
    if not is_loopback(host):  # 0.0.0.0 is not an address that one can ask
        address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    return f"http://[{address}]:{port}/v1" if ":" in address else f"http://{address}:{port}/v1"
