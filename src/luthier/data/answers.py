"""A dataset of a model's own answers: what one model says, for another to learn (sequence-level distillation; Kim and Rush 2016).

It asks any engine, so that teacher and student need not have a tokenizer in common. The file is the state: rows are added as they come,
and a call that is made again goes on after the last whole one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from luthier.core.dataset import Dataset
from luthier.core.digest import digest_json
from luthier.core.engine import GENERATE, Engine, Sampling, require
from luthier.core.errors import ConflictError, DataError
from luthier.core.message import Conversation, Message
from luthier.core.run import Progress, no_progress
from luthier.store.home import disk_errors

BLOCK = 16
"""Prompts that are asked at once: what an interruption can lose."""


@dataclass(frozen=True)
class Answered:
    """``rows`` in the file, of them ``earlier`` there before; ``cut`` answers did not end within the tokens allowed and ``empty`` ones said
    nothing: neither is written."""

    path: Path
    rows: int
    earlier: int
    cut: int
    empty: int


def answers(
    prompts: Dataset,
    engine: Engine,
    path: str | Path,
    *,
    sampling: Sampling | None = None,
    system: str = "",
    progress: Progress = no_progress,
) -> Answered:
    """Ask ``engine`` for an answer to every prompt and write conversations to ``path`` (JSON Lines of kind chat), in the order of the prompts.

    A conversation is asked without its last answers. ``system`` begins those that have no system turn. Each row says which prompt
    (``prompt_id``), model, digest, engine and sampling it is of. Equal prompts are asked once. Raises UnsupportedError for an engine that
    cannot write, DataError for rows without a user turn, ConflictError where ``path`` holds other rows, StoreError when the disk refuses.
    """
    require(engine, GENERATE)
    path, sampling = Path(path), sampling or Sampling()
    asked = _prompts(prompts, system)
    made_by = _provenance(engine, sampling, system)
    done = _there(path, made_by)
    left = [(key, prompt) for key, prompt in asked.items() if key not in done]
    earlier = len(asked) - len(left)
    cut = empty = 0
    progress("answers", earlier, len(asked))
    with _appending(path) as file:
        for start in range(0, len(left), BLOCK):
            block = left[start : start + BLOCK]
            said = engine.generate([prompt for _, prompt in block], sampling)
            for (key, prompt), one in zip(block, said, strict=True):
                if one.finish_reason == "length":
                    cut += 1
                elif not one.text.strip():
                    empty += 1
                else:
                    row = {"messages": _rows((*prompt, Message("assistant", one.text))), "prompt_id": key, **made_by}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
            progress("answers", earlier + start + len(block), len(asked))
    return Answered(path, len(asked) - cut - empty, earlier, cut, empty)


def _prompts(dataset: Dataset, system: str) -> dict[str, Conversation]:
    """What is asked, by a digest of it."""
    found: dict[str, Conversation] = {}
    for example in dataset.examples:
        messages = list(example.messages)
        while messages and messages[-1].role == "assistant":
            messages.pop()
        if not messages or not any(m.role == "user" for m in messages):
            raise DataError(f"{example.source or example.id}: there is nothing to answer: the row has no user turn")
        if system and messages[0].role != "system":
            messages.insert(0, Message("system", system))
        prompt = tuple(messages)
        found.setdefault(digest_json(_rows(prompt))[:16], prompt)
    return found


def _rows(messages: Conversation) -> list[dict[str, Any]]:
    return [message.as_dict() for message in messages]


def _provenance(engine: Engine, sampling: Sampling, system: str) -> dict[str, Any]:
    info = engine.info
    drawn = {key: value for key, value in asdict(sampling).items() if value not in (None, ())}
    return {"answered_by": info.model, "model_digest": info.model_digest, "engine": info.engine, "sampling": drawn} | (
        {"prompt_digest": info.prompt_digest} if info.prompt_digest else {}
    )


def _there(path: Path, made_by: Mapping[str, Any]) -> set[str]:
    """Prompts that were answered before. The half line of an interrupted write is taken off the file."""
    if not path.exists():
        return set()
    with disk_errors(path):
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) != len(data):
            with path.open("r+b") as file:
                file.truncate(len(whole))
    found = set()
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
            same = {key: row[key] for key in made_by} == json.loads(json.dumps(made_by))
            found.add(str(row["prompt_id"]))
        except (ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise ConflictError(
                f"{path}:{number}: is not an answer of {made_by['answered_by']} with these settings, so that nothing is added to the file",
                hint="choose another file: --out OTHER.jsonl",
            )
    return found


@contextmanager
def _appending(path: Path) -> Iterator[TextIO]:
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            yield file
