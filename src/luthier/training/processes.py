"""One training in several processes: data parallel, through accelerate's process group (gloo on CPUs, NCCL on GPUs).

The first process leads: it has the store, the checkpoints, the metrics and every decision that depends on time. The others follow: they load the
same model and rows and take their part of every micro-batch; gradients are summed (Li et al. 2020, "PyTorch Distributed"; here once a step,
over the flat fp32 buffers of the optimizer). Whatever one process finds wrong, all hear of before the next update, so that none waits for one that has ended.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from luthier.core.errors import InputError, TrainingError

Row = TypeVar("Row")

_PATIENCE = timedelta(hours=12)
"""A follower waits for the leader's validation as long as that takes; one that has died is noticed at once, by its closed connection."""


def started_with() -> int:
    """Processes of this training as torchrun or accelerate launch started it; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def wanted(processes: int | Literal["auto"], device: str) -> int:
    """How many processes ``train.processes`` asks for: auto is one a GPU. Raises InputError for more processes than GPUs."""
    gpus = torch.cuda.device_count() if device == "auto" or device.startswith("cuda") else 0
    if processes == "auto":
        return max(1, gpus)
    if gpus and processes > gpus:
        raise InputError(f"train.processes must be at most the number of GPUs, {gpus}; got {processes}")
    return processes


def own_gpu() -> None:
    """Let ``cuda`` mean this process's own GPU from now on, where there are GPUs."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


class Processes:
    """The processes of this training. With one of them nothing is sent anywhere."""

    def __init__(self, device: torch.device) -> None:
        self.index, self.count, self._device = 0, 1, device
        if started_with() > 1:
            from accelerate import PartialState

            state = PartialState(cpu=device.type != "cuda", timeout=_PATIENCE)
            self.index, self.count = state.process_index, state.num_processes
            if self.count != started_with():
                raise TrainingError(f"this process is one of {self.count}, not of {started_with()} that were started")

    @property
    def leads(self) -> bool:
        """Whether this is the first process."""
        return self.index == 0

    def part(self, rows: Sequence[Row]) -> list[Row]:
        """This process's rows of a micro-batch that is sorted by length: every ``count``-th, so that all get like lengths."""
        return list(rows[self.index :: self.count])

    def seed(self, seed: int, step: int) -> None:
        """Random numbers of this process in this step; with one process they go on from where they are."""
        if self.count > 1:
            torch.manual_seed(zlib.crc32(f"{seed}/{step}/{self.index}".encode()))

    def sum(self, buffer: Tensor) -> Tensor:
        """The sum of a buffer over the processes."""
        from accelerate.utils import reduce

        found: Tensor = reduce(buffer, "sum")
        return found

    def gather(self, value: Any) -> list[Any]:
        """What every process has to say, in their order, as JSON keeps it."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather

        said = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=self._device)
        sizes = gather(torch.tensor([len(said)], device=self._device)).tolist()
        padded = said.new_zeros(max(sizes))
        padded[: len(said)] = said
        every = gather(padded[None]).cpu()
        return [json.loads(bytes(row[:size].tolist())) for row, size in zip(every, sizes, strict=True)]

    def tell(self, make: Callable[[], Any]) -> Any:
        """What the leader makes, told to all, as JSON keeps it. An error in making it is raised in the leader, and as a TrainingError in the others."""
        if self.count == 1:
            return make()
        made: dict[str, Any] = {"error": "the leading process has ended"}
        try:
            if self.leads:
                made = {"value": make()}
        finally:
            told = self.gather(made if self.leads else None)[0]
        if "error" in told:
            raise TrainingError(told["error"])
        return told["value"]


@contextmanager
def followers(count: int, folder: Path, arguments: Sequence[str]) -> Iterator[None]:
    """``count`` processes of this machine, this one leading; the others run ``luthier.training.follow`` with ``arguments``.

    Their output goes to ``process-N.log`` in ``folder``. Raises TrainingError, with the end of its log, when one of them fails first.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    started: list[subprocess.Popen[bytes]] = []
    before = {name: os.environ.get(name) for name in (*common, "RANK", "LOCAL_RANK")}
    try:
        for rank in range(1, count):
            with (folder / f"process-{rank}.log").open("wb") as log:
                place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                command = [sys.executable, "-m", "luthier.training.follow", *arguments]
                started.append(subprocess.Popen(command, env={**os.environ, **common, **place}, stdout=log, stderr=log))
        os.environ.update({**common, "RANK": "0", "LOCAL_RANK": "0"})
        leave()  # accelerate remembers for good that this process was alone, if anything has asked it before
        try:
            yield
        except RuntimeError as error:  # a connection that was closed: say why it was
            raise _explained(error, started, folder) from error
    finally:
        leave()
        for process in started:
            process.terminate()
        for process in started:
            process.wait()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _explained(error: RuntimeError, started: Sequence[subprocess.Popen[bytes]], folder: Path) -> Exception:
    for rank, process in enumerate(started, 1):
        if process.poll() not in (None, 0):
            text = (folder / f"process-{rank}.log").read_text(encoding="utf-8", errors="replace").strip()
            last = text.splitlines()[-1] if text else f"exit code {process.returncode}"
            return TrainingError(
                f"process {rank} of {len(started) + 1} has ended: {last}",
                hint=f"its output is in {folder / f'process-{rank}.log'}; the same command goes on at the last checkpoint",
            )
    return error


def leave() -> None:
    """Take this process out of its group, if it is in one, and let accelerate look anew when it is asked next."""
    from accelerate import PartialState

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    PartialState._reset_state()
