"""What a model writes about documents, kept by what it was asked: the same is never asked twice."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.digest import digest_json
from luthier.core.engine import Engine, Sampling
from luthier.core.message import Conversation
from luthier.core.run import Progress, no_progress
from luthier.knowledge.prompt import harmless

if TYPE_CHECKING:
    from luthier.store.database import Store

AT_ONCE = 32
"""Prompts between two savings."""


def as_data(text: str, name: str) -> str:
    """``text`` between marks that nothing in it can close: ``<name>`` to ``</name>``."""
    safe = re.sub(rf"<(?=\s*/?\s*{re.escape(name)}\b)", "(", harmless(text), flags=re.IGNORECASE)
    return f"<{name}>\n{safe}\n</{name}>"


class Writers:
    """Models that write, opened when they are first wanted. ``default`` is the one that is meant when none is named."""

    def __init__(self, store: Store, default: str = "") -> None:
        self._store, self._default = store, default
        self._opened: dict[str, Engine] = {}
        self._lock = threading.Lock()

    def open(self, name: str = "") -> Engine | None:
        """The model of this name; None when none is named and there is no default. Raises NotFoundError for an unknown one."""
        from luthier.strategies._load import load

        name = name or self._default
        with self._lock:
            if name and name not in self._opened:
                self._opened[name] = load(name, store=self._store)
            return self._opened.get(name)

    def close(self) -> None:
        """Close what was opened. Safe to call twice."""
        with self._lock:
            for each in self._opened.values():
                each.close()
            self._opened = {}


def write_once(
    engine: Engine,
    prompts: Sequence[Conversation],
    sampling: Sampling,
    kept: Path | None = None,
    progress: Progress = no_progress,
    stage: str = "write",
) -> list[str]:
    """What ``engine`` answers to each prompt, in order.

    With a file in ``kept`` an answer is taken from there where the same model was asked the same before, and is written there as soon as it
    comes: a process that dies goes on where it was.
    """
    info = engine.info
    asked = [info.model, info.model_digest, info.template_digest, info.prompt_digest, asdict(sampling)]
    keys = [digest_json([asked, [turn.as_dict() for turn in prompt]]) for prompt in prompts]
    with closing(_open(kept)) as connection:
        known = _known(connection, keys)
        first = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in known}
        todo = list(first)
        for start in range(0, len(todo), AT_ONCE):
            part = todo[start : start + AT_ONCE]
            answers = engine.generate([first[key] for key in part], sampling)
            fresh = {key: answer.text for key, answer in zip(part, answers, strict=True)}
            with connection:
                connection.executemany("INSERT OR REPLACE INTO written (key, text) VALUES (?, ?)", list(fresh.items()))
            known |= fresh
            progress(stage, len(prompts) - len(todo) + start + len(part), len(prompts))
    return [known[key] for key in keys]


def _open(path: Path | None) -> sqlite3.Connection:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path or ":memory:", timeout=60)
    connection.execute("CREATE TABLE IF NOT EXISTS written (key TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID")
    return connection


def _known(connection: sqlite3.Connection, keys: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for start in range(0, len(keys), 500):
        part = keys[start : start + 500]
        marks = ", ".join("?" * len(part))
        found |= dict(connection.execute(f"SELECT key, text FROM written WHERE key IN ({marks})", part).fetchall())
    return found
