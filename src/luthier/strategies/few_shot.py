"""Show worked examples before the question (Brown et al., 2020, "Language Models are Few-Shot Learners")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Example
from luthier.core.digest import digest_json
from luthier.core.engine import Engine
from luthier.core.errors import InputError
from luthier.strategies._pool import NearestShots, load_pool, open_embedder, save_pool
from luthier.strategies._prompted import Prompted, Shots, read_prompt, settled
from luthier.strategies._shots import by_id, draw_examples, pairs

if TYPE_CHECKING:
    from luthier.store.database import Store

MOST_LABELS = 16
OPEN_SHOTS = 4


class Config(EntryConfig):
    """``shots`` worked examples in all; 0 is one for each label (at most 16), or 4 where answers are free text.

    ``choose`` says which: ``balanced`` (labels in turn, drawn with ``seed``), ``random``, ``fixed`` (those in ``examples``, or the ones of
    the train split with these ``ids``), or ``nearest`` (for each question the most similar ones by the vectors of ``embedder``, the
    nearest last; Liu et al., 2022, "What Makes Good In-Context Examples for GPT-3?").

    ``examples`` are the chosen (input, answer) pairs themselves, filled in from training examples, so that a stored config answers the
    same anywhere. For ``nearest``, ``pool`` is the digest under which the store keeps at most ``pool_size`` of them with their vectors.
    ``template`` takes instruction and input from the prompt catalogue.
    """

    prompt: Mapping[str, Any] = Field(default_factory=dict)
    template: str = ""
    shots: int = Field(default=0, ge=0, le=256)
    choose: Literal["balanced", "random", "fixed", "nearest"] = "balanced"
    seed: int = 0
    examples: tuple[tuple[str, str], ...] = ()
    ids: tuple[str, ...] = ()
    embedder: str = "minilm-l6"
    pool: str = ""
    pool_size: int = Field(default=1000, ge=1, le=100_000)


def prepare(config: Config, train: Sequence[Example], store: Store | None = None) -> Config:
    """``config`` with its examples chosen from ``train``: the same for the same seed, whatever the order of the rows.

    Raises InputError when there is nothing to choose from, or not enough; NotFoundError for an unknown id or embedder.
    """
    prompt = settled(config.prompt, config.template, store)
    config = config.model_copy(update={"prompt": prompt, "template": ""})
    if config.pool or (config.examples and config.choose != "nearest"):
        return config
    if config.examples:
        return _pooled(config, config.examples, config.shots or min(len(config.examples), OPEN_SHOTS), store)
    usable = [e for e in train if e.target is not None]
    if config.choose == "fixed" or config.ids:
        return _fixed(config, usable)
    if not usable:
        raise InputError(
            "few_shot takes its examples from the train split, and that is empty",
            hint="give data.split or data.train in the task file, or use strategy zero_shot",
        )
    labels = tuple(prompt["labels"])
    wanted = config.shots or min(len(usable), min(len(labels), MOST_LABELS) if labels else OPEN_SHOTS)
    if wanted > len(usable):
        raise InputError(f"few_shot.shots must be at most {len(usable)}, the size of the train split; got {wanted}")
    if config.choose == "nearest":
        drawn = draw_examples(usable, config.pool_size, config.seed)
        return _pooled(config, pairs(sorted(drawn, key=lambda e: e.id)), wanted, store)
    turns = labels if config.choose == "balanced" else ()
    chosen = pairs(draw_examples(usable, wanted, config.seed, turns))
    return config.model_copy(update={"shots": wanted, "examples": chosen})


def _fixed(config: Config, usable: Sequence[Example]) -> Config:
    if config.choose not in ("fixed", "balanced"):
        raise InputError(f"few_shot.ids are for choose: fixed; got choose: {config.choose}")
    if not config.ids:
        raise InputError("few_shot.choose fixed needs examples, (input, answer) pairs, or ids of the train split")
    chosen = pairs(by_id(usable, config.ids, "few_shot.ids"))
    return config.model_copy(update={"choose": "fixed", "shots": len(chosen), "examples": chosen})


def _pooled(config: Config, pool: Shots, wanted: int, store: Store | None) -> Config:
    """Keep what there is to choose from in the store."""
    if wanted > len(pool):
        raise InputError(f"few_shot.shots must be at most {len(pool)}, the examples to choose from; got {wanted}")
    store = store or _default_store()
    embedder = open_embedder(config.embedder, store)
    try:
        digest = save_pool(store, pool, embedder)
    finally:
        embedder.close()
    return config.model_copy(update={"shots": wanted, "examples": (), "pool": digest})


def wrap(engine: Engine, config: Config, store: Store | None = None) -> Engine:
    """``engine``, asked after the examples. Unless they are the nearest, all prompts share them as a prefix.

    Raises InputError when ``config`` holds no examples, or fewer or more than its ``shots`` says; StoreError when the store has not
    its pool.
    """
    prompt = read_prompt(config.prompt, config.template)
    if config.choose == "nearest":
        if not config.pool:
            raise InputError("few_shot.pool is empty; choose: nearest needs a task whose train split has examples")
        store = store or _default_store()
        pool = load_pool(store, config.pool)
        embedder = open_embedder(config.embedder, store)
        decides = digest_json([prompt.digest, "nearest", config.pool, config.shots, embedder.info.model_digest])
        try:
            return NearestShots(engine, prompt, pool, embedder, config.shots or OPEN_SHOTS).described(decides)
        except BaseException:
            embedder.close()
            raise
    if not config.examples:
        raise InputError("few_shot.examples is empty; give (input, answer) pairs, or a task whose train split has some")
    if config.shots not in (0, len(config.examples)):
        raise InputError(f"few_shot.shots is {config.shots}, and few_shot.examples holds {len(config.examples)}")
    return Prompted(engine, prompt, config.examples)


def _default_store() -> Store:
    from luthier.store.database import open_store

    return open_store()
