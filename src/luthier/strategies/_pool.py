"""Worked examples that are looked up by likeness: texts, answers and vectors, kept in the store under the digest of what they hold."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from luthier.core.engine import EMBED, Engine, EngineInfo, Vectors, require
from luthier.core.errors import MismatchError, StoreError
from luthier.core.task import PromptTemplate
from luthier.store.artifacts import path_of, put, staged
from luthier.strategies._prompted import Prompted, Shots

if TYPE_CHECKING:
    from luthier.store.database import Store

_REMEMBERED = 512
_ROWS, _VECTORS, _ABOUT = "examples.jsonl", "vectors.npy", "about.json"


def open_embedder(name: str, store: Store | None) -> Engine:
    """The engine called ``name``, which must make vectors. Raises NotFoundError or UnsupportedError."""
    from luthier.strategies._load import load

    engine = load(name, store=store, raw=True)
    try:
        require(engine, EMBED)
    except BaseException:
        engine.close()
        raise
    return engine


def save_pool(store: Store, examples: Shots, embedder: Engine) -> str:
    """Keep ``examples`` with their vectors; returns the digest under which the store has them."""
    vectors = embedder.embed([text for text, _ in examples])
    with staged(store) as folder:
        rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in examples)
        (folder / _ROWS).write_text(rows, encoding="utf-8")
        np.save(folder / _VECTORS, vectors.astype(np.float32), allow_pickle=False)
        (folder / _ABOUT).write_text(json.dumps({"embedder": embedder.info.model_digest}), encoding="utf-8")
        digest, _ = put(store, folder)
    return digest


def load_pool(store: Store, digest: str) -> tuple[Shots, Vectors, str]:
    """Examples, their vectors, and the digest of the embedder that made them. Raises StoreError when the store lacks them."""
    try:
        folder = path_of(store, digest)
    except StoreError as error:
        raise StoreError(
            f"the examples that few_shot chooses from are not in this store: {error.message}",
            hint="evaluate with the strategy again, in the store that serves it",
        ) from error
    rows = (folder / _ROWS).read_text(encoding="utf-8").splitlines()
    examples = tuple((str(text), str(answer)) for text, answer in map(json.loads, rows))
    vectors = np.load(folder / _VECTORS, allow_pickle=False)
    about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    return examples, vectors, str(about["embedder"])


class NearestShots(Prompted):
    """Asks after the ``count`` examples of a pool that are most like the question, the nearest last.

    Likeness is the cosine of the embedder's vectors. An example that is the question itself is not shown.
    """

    def __init__(
        self, inner: Engine, template: PromptTemplate, pool: tuple[Shots, Vectors, str], embedder: Engine, count: int
    ) -> None:
        super().__init__(inner, template)
        self._examples, self._vectors, made_by = pool
        self._embedder, self._count = embedder, count
        if embedder.info.model_digest != made_by:
            raise MismatchError(
                f"few_shot.embedder {embedder.info.model} is not the one that made the examples' vectors (digest "
                f"{embedder.info.model_digest[:12]}, theirs {made_by[:12]})",
                hint="evaluate with the strategy again",
            )
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Shots] = OrderedDict()

    def described(self, digest: str) -> NearestShots:
        """Itself, with ``digest`` as that of its whole way of asking."""
        self._info: EngineInfo = self._info.with_(prompt_digest=digest)
        return self

    def shots_for(self, texts: Sequence[str]) -> list[Shots]:
        """The nearest examples of each text."""
        with self._lock:
            known = {text: self._known[text] for text in texts if text in self._known}
        new = list(dict.fromkeys(text for text in texts if text not in known))
        if new:
            likeness = self._embedder.embed(new) @ self._vectors.T
            known |= {text: self._nearest(text, row) for text, row in zip(new, likeness, strict=True)}
            with self._lock:
                self._known.update((text, known[text]) for text in new)
                while len(self._known) > _REMEMBERED:
                    self._known.popitem(last=False)
        return [known[text] for text in texts]

    def _nearest(self, text: str, likeness: Vectors) -> Shots:
        order = [int(i) for i in np.argsort(-likeness, kind="stable") if self._examples[i][0] != text]
        return tuple(self._examples[i] for i in reversed(order[: self._count]))

    def close(self) -> None:
        """Close the inner engine and the embedder."""
        self.inner.close()
        self._embedder.close()
