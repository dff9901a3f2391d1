"""One batch on its way: validated, answered many lines at a time, and after a kill from where it stood."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Awaitable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar, cast

from luthier.core.batch import BatchRecord
from luthier.core.errors import ConflictError, EngineError, LuthierError, NotFoundError
from luthier.gateway.access.caller import Caller
from luthier.gateway.answer import drive
from luthier.gateway.api.embeddings import EmbeddingRequest, embed_batch
from luthier.gateway.batch.lines import (
    EMBEDDINGS,
    Line,
    Ready,
    check_lines,
    failed_row,
    question_of,
    read_lines,
    ready,
    row_of,
    rows_of,
    unasked_row,
)
from luthier.gateway.batch.results import Results
from luthier.gateway.targets.gate import BATCH
from luthier.store.batches import batch_folder, update_batch
from luthier.store.files import file_path, find_file, keep_file, receiving
from luthier.store.home import write_atomic

if TYPE_CHECKING:
    from pathlib import Path

    from luthier.gateway.batch.worker import BatchWorker

Done = TypeVar("Done")
Group = list[Ready]

LEASE_S = 15.0
_GROUPS = 32
_WINDOW_BYTES = 8 * 2**20
WAITS_S = {"insufficient_quota": 60.0, "no_target": 5.0, "queue_full": 1.0, "too_late": 1.0, "busy": 1.0}
"""Errors that pass by themselves, and how long is waited before the next try."""

logger = logging.getLogger("luthier.gateway")


class StoppedError(Exception):
    """A batch ends before its last line. ``to``: its status then; "" leaves it to whoever comes next. Lines that were not asked get ``code`` and ``message``."""

    def __init__(self, to: str, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.to = to
        self.code = code
        self.message = message

    @staticmethod
    def cancelled() -> StoppedError:
        """Its owner said so."""
        return StoppedError("cancelled", "batch_cancelled", "the batch was cancelled before this line was asked")

    def problems(self) -> list[dict[str, Any]]:
        """What the batch object says of it."""
        return [problem(self.code, self.message)] if self.to == "failed" else []


def problem(code: str, message: str) -> dict[str, Any]:
    """An entry of a batch's errors that is about no single line."""
    return {"code": code, "line": None, "message": message, "param": None}


class Run:
    """One batch on its way. Belongs to the event loop."""

    def __init__(self, worker: BatchWorker, batch: BatchRecord) -> None:
        self.worker = worker
        self.service = worker.service
        self.batch = batch
        self._stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._said_s = 0.0
        self._failed_once: set[str] = set()
        self._expires_s = datetime.fromisoformat(batch.expires_at).timestamp()
        self.task = asyncio.get_running_loop().create_task(self._run())

    def end(self, why: StoppedError) -> None:
        """Stop in the middle of what is being done."""
        if not self._stopped.done():
            self._stopped.set_exception(why)
            self._stopped.exception()  # looked at: nobody need be told that nobody did

    async def _run(self) -> None:
        try:
            if self.batch.status == "cancelling":
                self.end(StoppedError.cancelled())
            await self._validate()
            if self.batch.status != "failed":
                await self._answer()
        except StoppedError:
            logger.info("batch %s is left to another worker", self.batch.id)
        except ConflictError as error:
            logger.warning("%s", error)
        except NotFoundError as error:
            await self._fail([problem("file_not_found", error.message)])
        except (LuthierError, OSError) as error:
            logger.error("batch %s stands still: %s; it is taken up again in %g s", self.batch.id, error, LEASE_S)
            await asyncio.sleep(LEASE_S)
        except Exception:
            logger.exception("batch %s failed in a way that it should not", self.batch.id)
            await self._fail([problem("internal_error", "the server failed on this batch; its log says how")])
        finally:
            self.worker.ended(self)

    async def _update(self, **changes: Any) -> None:
        store, name = self.service.store, self.worker.name
        self.batch = await asyncio.to_thread(lambda: update_batch(store, name, self.batch.id, **changes))

    async def _fail(self, errors: list[dict[str, Any]]) -> None:
        try:
            await self._update(to="failed", errors=errors)
        except LuthierError as error:
            logger.error("batch %s: %s", self.batch.id, error)

    def _input(self) -> Path:
        store = self.service.store
        return file_path(store, find_file(store, self.batch.input_file, self.batch.tenant))

    async def _validate(self) -> None:
        if self.batch.status != "validating":
            return
        path = await asyncio.to_thread(self._input)
        most = self.worker.config.max_lines
        total, problems = await asyncio.to_thread(check_lines, path, self.batch.endpoint, most)
        if problems:
            await self._fail(problems)
        else:
            await self._update(to="in_progress", total=total)

    # ---- answering

    async def _answer(self) -> None:
        folder = await asyncio.to_thread(batch_folder, self.service.store, self.batch.id)
        with await asyncio.to_thread(Results, folder / "results.jsonl") as results:
            if self.batch.status != "finalizing":
                stopped = await self._all(results)
                if stopped is not None:
                    await asyncio.to_thread(self._skip, results, stopped)
                await asyncio.to_thread(write_atomic, folder / "ends", stopped.to if stopped else "completed")
                errors = stopped.problems() if stopped else []
                await self._update(to="finalizing", completed=results.completed, failed=results.failed, errors=errors)
            await self._finish(folder, results)

    async def _all(self, results: Results) -> StoppedError | None:
        """Answer every line that has no row yet; returns what ended that before the last line."""
        try:
            while await self._pass(results):
                continue
        except StoppedError as stopped:
            if not stopped.to:
                raise
            return stopped
        return None

    async def _pass(self, results: Results) -> bool:
        """Ask all lines that have no row once; whether there were any."""
        lines = await asyncio.to_thread(lambda: read_lines(self._input(), self.batch.endpoint))
        any_left = False
        while True:
            caller = self._caller()
            window = await asyncio.to_thread(unanswered, lines, results.done, _GROUPS * self.worker.config.rows)
            if not window:
                return any_left
            any_left = True
            for unit in await asyncio.to_thread(self._units, window, results, caller):
                self._check()
                rows = await self._unless_stopped(self._unit(unit, caller))
                await asyncio.to_thread(results.append, rows)
                await self._say(results)

    def _caller(self) -> Caller:
        caller = self.service.keys.caller_of(self.batch.key_id)
        if (
            caller is None
            or caller.tenant != self.batch.tenant
            or not (caller.may("batch") and caller.may("inference"))
        ):
            raise StoppedError("failed", "key_revoked", "the key that made this batch is no longer good for it")
        return caller

    def _check(self) -> None:
        """Raise StoppedError when this is to end."""
        if self._stopped.done():
            self._stopped.result()
        if time.time() >= self._expires_s:
            raise StoppedError("expired", "batch_expired", f"this line was not asked within {self.batch.window}")
        self._caller()

    async def _unless_stopped(self, work: Awaitable[Done]) -> Done:
        """The result of ``work``, or StoppedError as soon as the batch is to end: the engine then stops at its next token."""
        task = asyncio.ensure_future(work)
        left_s = max(0.0, self._expires_s - time.time())
        try:
            either: list[asyncio.Future[Any]] = [task, self._stopped]
            await asyncio.wait(either, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self._check()
            return await task
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _say(self, results: Results) -> None:
        """Tell the client how far it is, at most once a second."""
        if time.monotonic() - self._said_s >= 1.0:
            self._said_s = time.monotonic()
            await self._update(completed=results.completed, failed=results.failed)

    def _units(self, window: list[Line], results: Results, caller: Caller) -> list[list[Group]]:
        """What is asked at once: a group of lines in one call, or several lines that must go by themselves. A line whose body is wrong gets its row now."""
        groups: dict[Any, list[Group]] = {}
        alone: Group = []
        refused = []
        for line in window:
            try:
                each = ready(line)
                self._permit(each, caller)
            except LuthierError as error:
                refused.append(failed_row(line, error))
                continue
            if each.key is None or not self._together(each.model):
                alone.append(each)
                continue
            known = groups.setdefault(each.key, [[]])
            if len(known[-1]) == self.worker.config.rows:
                known.append([])
            known[-1].append(each)
        if refused:
            results.append(refused)
        return [[group] for known in groups.values() for group in known] + self._alone(alone)

    def _permit(self, each: Ready, caller: Caller) -> None:
        if not caller.sees(each.model):
            self.service.refuse_model(each.model, [name for name in self.service.names() if caller.sees(name)])

    def _together(self, model: str) -> bool:
        """Whether lines may go through the layers as one question: not where those decide about each line (guardrails, caches, routes)."""
        service = self.service
        plain = service.guard is None and service.cache is None and model in service.models
        return plain or self.batch.endpoint == EMBEDDINGS

    async def _unit(self, unit: list[Group], caller: Caller) -> list[dict[str, Any]]:
        made = await asyncio.gather(*(self._rows(group, caller) for group in unit))
        return [row for rows in made for row in rows]

    async def _rows(self, group: Group, caller: Caller) -> list[dict[str, Any]]:
        """The rows of a group. The lines of one that fails are asked one by one: halving it again and again would look like a broken engine.

        A line that an engine failed on in a way that may pass gets no row yet: it is asked once more when all others are answered.
        """
        try:
            return await self._patiently(group, caller)
        except LuthierError as error:
            if len(group) == 1:
                line = group[0].line
                if isinstance(error, EngineError) and error.retryable and line.custom_id not in self._failed_once:
                    self._failed_once.add(line.custom_id)
                    return []
                return [failed_row(line, error)]
        return [row for unit in self._alone(group) for row in await self._unit(unit, caller)]

    def _alone(self, lines: Group) -> list[list[Group]]:
        """Units of single lines, as many at once as leave the other half of the gate to whoever is online."""
        at_once = max(1, min(self.worker.config.rows, self.service.gate.most_running // 2))
        return [[[each] for each in lines[start : start + at_once]] for start in range(0, len(lines), at_once)]

    async def _patiently(self, group: Group, caller: Caller) -> list[dict[str, Any]]:
        """The rows of a group; what is not its own fault is waited for: a full server, a budget that begins anew, an engine that nobody is sent to now."""
        while True:
            try:
                async with self.worker.turns:
                    return await self._ask(group, caller)
            except LuthierError as error:
                code = getattr(error, "code", None) or ""
                if code == "stopping":
                    raise StoppedError("") from error
                if code not in WAITS_S:
                    raise
                logger.info("batch %s waits %g s: %s", self.batch.id, WAITS_S[code], error.message)
                await asyncio.sleep(WAITS_S[code])

    async def _ask(self, group: Group, caller: Caller) -> list[dict[str, Any]]:
        if self.batch.endpoint == EMBEDDINGS:
            bodies = [cast(EmbeddingRequest, each.asked) for each in group]
            made = await embed_batch(self.service, caller, bodies)
            return [row_of(each.line, *answered) for each, answered in zip(group, made, strict=True)]
        question = question_of(group, caller)
        exchange = question.exchange
        exchange.priority = BATCH
        try:
            await self.service.admit(exchange, bulk=True)
        except LuthierError as error:
            self.service.finish(exchange, error)
            raise
        await drive(self.service, question)
        return rows_of(group, exchange)

    # ---- ending

    def _skip(self, results: Results, why: StoppedError) -> None:
        """Rows for the lines that are not asked any more."""
        lines = read_lines(self._input(), self.batch.endpoint)
        while window := unanswered(lines, results.done, 1000):
            results.append([unasked_row(line, why.code, why.message) for line in window])

    async def _finish(self, folder: Path, results: Results) -> None:
        """Make files of the rows, and end."""
        for name, good in (("output_file", True), ("error_file", False)):
            if getattr(self.batch, name) is None and (results.completed if good else results.failed):
                kept = await asyncio.to_thread(self._keep, results, good=good)
                await self._update(**{name: kept})
        to = await asyncio.to_thread((folder / "ends").read_text, "utf-8")
        await self._update(to=to, completed=results.completed, failed=results.failed)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def _keep(self, results: Results, *, good: bool) -> str:
        batch = self.batch
        with receiving(self.service.store) as path:
            with path.open("wb") as file:
                for data, succeeded in results.rows():
                    if succeeded == good:
                        file.write(data)
            made = keep_file(
                self.service.store,
                path,
                tenant=batch.tenant,
                name=f"{batch.id}_{'output' if good else 'error'}.jsonl",
                purpose="batch_output",
                key_id=batch.key_id,
                keep_days=self.worker.config.keep_days,
            )
        return made.id


def unanswered(lines: Iterator[Line | dict[str, Any]], done: set[str], most: int) -> list[Line]:
    """The next lines that have no row yet: at most so many, and of a bounded size together."""
    out: list[Line] = []
    size = 0
    for line in lines:
        if isinstance(line, Line) and line.custom_id not in done:
            out.append(line)
            size += line.size_bytes
            if len(out) == most or size >= _WINDOW_BYTES:
                break
    return out
