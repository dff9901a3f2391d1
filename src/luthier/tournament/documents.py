"""Documents that hold the answers of a task, and the entrants that answer from them.

documents: handbook/                      # a file or folder: a base of the task's own is made of it, and kept
documents: handbook                       # or a knowledge base by its name
documents: {path: [a/, b.pdf], chunker: sentence, embedder: minilm-l6, retrieval: [mmr, hybrid]}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

from pydantic import field_validator

from luthier.core.catalog import EntryConfig
from luthier.core.config import validate
from luthier.core.dataset import Dataset, Example, Splits
from luthier.core.engine import GENERATE, Engine, EngineInfo, Generation, Sampling
from luthier.core.errors import InputError, NotFoundError
from luthier.core.message import Prompt, last_user_text, user
from luthier.core.run import Progress, no_progress
from luthier.core.task import PromptTemplate, Task
from luthier.knowledge.base import KnowledgeBase, create_base, open_base
from luthier.knowledge.measure import Asking, answering
from luthier.knowledge.settings import steps_of
from luthier.store.database import Store
from luthier.tasks.own import Config as TaskConfig


class Documents(EntryConfig):
    """See the module. ``chunker``, ``embedder`` and ``retrieval`` are of a base that is made."""

    base: str = ""
    path: tuple[str, ...] = ()
    chunker: Any = None
    embedder: str | None = None
    retrieval: Any = None

    @field_validator("path", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


def read_documents(config: TaskConfig) -> Documents | None:
    """The documents of a task file; None without. Raises InputError."""
    if config.documents is None:
        return None
    told = {"base": config.documents} if isinstance(config.documents, str) else config.documents
    found: Documents = validate(Documents, told, where="documents")
    if bool(found.base) == bool(found.path):
        raise InputError("documents needs a base or a path, and not both", hint="documents: a folder, or a base's name")
    made_with = {key for key in ("chunker", "embedder", "retrieval") if getattr(found, key) is not None}
    if found.base and made_with:
        raise InputError(
            f"documents: {', '.join(sorted(made_with))} belong to a base that is made; {found.base} has its own"
        )
    return found


@contextmanager
def open_documents(
    store: Store, documents: Documents, task: str, progress: Progress = no_progress
) -> Iterator[KnowledgeBase]:
    """The base, with all documents in it: what changed since the last time is read.

    Raises NotFoundError for an unknown base, with paths InputError when none of them could be read.
    """
    if documents.base:
        with open_base(documents.base, store=store) as base:
            yield base
        return
    name = f"{task}-documents"[:64]
    try:
        base = open_base(name, store=store)
    except NotFoundError:
        options = {
            key: getattr(documents, key) for key in ("chunker", "embedder") if getattr(documents, key) is not None
        }
        steps = steps_of(documents.retrieval)
        base = create_base(name, **options, retrieval=steps, description=f"documents of the task {task}", store=store)
    with base:
        report = base.add(documents.path, progress=progress)
        if not base.index.count():
            first = f"; first: {report.failed[0][0]}: {report.failed[0][1]}" if report.failed else ""
            raise InputError(f"documents: nothing could be read from {', '.join(documents.path)}{first}")
        yield base


def from_documents(base: KnowledgeBase, engine: Engine, rag: Mapping[str, Any]) -> Engine:
    """``engine``, answering from ``base`` as an entrant says (``entrant.RagConfig``)."""
    asking = Asking(engine, mode=rag["mode"], options=rag["options"], passages=rag["k"])
    return answering(base, engine, asking, _steps(rag), None)


def shown_passages(
    task: Task,
    base: KnowledgeBase,
    rag: Mapping[str, Any],
    progress: Progress = no_progress,
    *,
    context_length: int = 0,
) -> Task:
    """The task as an adapter learns it: the question of each training and validation row as the prompt that serving would build for it, with
    what is found for it in ``base``. The prompts come from the engine that answers, with nothing behind it that writes and a context of
    ``context_length`` tokens (0: without end)."""
    noted = _Noted(context_length)
    engine = from_documents(base, cast(Engine, noted), rag)
    sampling = Sampling(max_new_tokens=task.max_new_tokens)
    total = len(task.splits.train) + len(task.splits.validation)
    done = 0

    def shown(part: Dataset) -> Dataset:
        nonlocal done
        out: list[Example] = []
        for example in part.examples:
            noted.prompts.clear()
            engine.generate([example.messages], sampling)
            asked = last_user_text(noted.prompts[-1]) if noted.prompts else example.text
            out.append(replace(example, id=f"{example.id}:shown", messages=user(asked)))
            done += 1
            progress("search", done, total)
        return replace(part, examples=tuple(out))

    splits = Splits(shown(task.splits.train), shown(task.splits.validation), task.splits.test)
    return replace(task, splits=splits, prompt=PromptTemplate())


def _steps(rag: Mapping[str, Any]) -> Sequence[Mapping[str, Any]] | None:
    return None if rag["retrieval"] is None else steps_of(rag["retrieval"])


class _Noted:
    """An engine that notes what it is asked and says nothing."""

    def __init__(self, context_length: int) -> None:
        self.prompts: list[Prompt] = []
        can = frozenset({GENERATE})
        self.info = EngineInfo("training questions", "none", can, context_length=context_length)

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress = no_progress
    ) -> list[Generation]:
        self.prompts += prompts
        return [Generation("", (), (), "stop") for _ in prompts]
