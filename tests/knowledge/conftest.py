"""Knowledge bases embedded by the fake engine, which counts what it is asked; and processes that die in the middle of changing them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from luthier.engines.fake import Config, FakeEngine
from luthier.knowledge.base import KnowledgeBase, create_base
from luthier.store.database import open_store


class Counting(FakeEngine):
    """A fake engine that keeps the texts that it embedded."""

    def __init__(self, name: str = "fake", **config: Any) -> None:
        super().__init__(name, Config(**config))
        self.embedded: list[str] = []

    def embed(self, texts: Any, *rest: Any) -> Any:
        self.embedded += [each for each in texts if each != "width"]  # an embedder asks once how wide its vectors are
        return super().embed(texts, *rest)


@pytest.fixture
def counting() -> type[Counting]:
    """The class of engines that keep what they embedded."""
    return Counting


@dataclass
class Folder:
    """A folder of documents; times of files are told apart whatever the disk's clock can."""

    path: Path
    clock: int = 1_700_000_000

    def write(self, name: str, text: str | bytes) -> str:
        """Write a file; returns its source."""
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        self.clock += 1
        os.utime(file, (self.clock, self.clock))
        return str(file)


@pytest.fixture
def docs(tmp_path: Path) -> Folder:
    """Three documents of a line each, English and Chinese."""
    folder = Folder(tmp_path / "docs")
    folder.write("leave.txt", "Parental leave is sixteen weeks.")
    folder.write("travel.txt", "Travel above 500 euros needs approval.")
    folder.write("sub/休假.txt", "年假有十五天。")
    return folder


@pytest.fixture
def base(home: Path) -> Iterator[KnowledgeBase]:
    """An empty base ``kb``; its engine is a ``Counting``."""
    with create_base("kb", embedder="fake", store=open_store(), engine=Counting()) as made:
        yield made


@pytest.fixture(scope="session")
def dying() -> Iterator[Callable[..., int]]:
    """``dying(home, work, at, when, call)``: run ``work`` in a process that kills itself before or after the ``call``-th call of the function
    ``at`` (``module:name``); returns its status, -9 when it died."""
    script = Path(__file__).with_name("dying.py")
    pipe = subprocess.PIPE
    driver = subprocess.Popen([sys.executable, str(script)], stdin=pipe, stdout=pipe, env=dict(os.environ), text=True)

    def died(home: Path, work: str, at: str = "", when: str = "after", call: int = 1) -> int:
        assert driver.stdin is not None and driver.stdout is not None
        asked = {"home": str(home), "work": work, "at": at, "when": when, "call": call}
        driver.stdin.write(json.dumps(asked) + "\n")
        driver.stdin.flush()
        return int(driver.stdout.readline())

    yield died
    driver.kill()
    driver.communicate()
