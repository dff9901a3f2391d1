"""Show worked examples before the question (Brown et al., 2020, "Language Models are Few-Shot Learners")."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Example
from luthier.core.engine import Engine
from luthier.core.errors import InputError
from luthier.strategies._prompted import Prompted, read_prompt

MOST_LABELS = 16
OPEN_SHOTS = 4


class Config(EntryConfig):
    """``shots`` worked examples in all; 0 is one for each label (at most 16), or 4 where answers are free text.

    ``examples`` are the chosen (input, answer) pairs themselves, so that a stored config answers the same anywhere; ``prepare``
    fills them in from training examples with ``seed``.
    """

    prompt: Mapping[str, Any] = Field(default_factory=dict)
    shots: int = Field(default=0, ge=0, le=256)
    seed: int = 0
    examples: tuple[tuple[str, str], ...] = ()


def prepare(config: Config, train: Sequence[Example]) -> Config:
    """``config`` with its examples chosen from ``train``: labels in turn, in random order, the same for the same seed.

    Raises InputError when there is nothing to choose from.
    """
    if config.examples:
        return config
    usable = [e for e in train if e.target is not None]
    if not usable:
        raise InputError(
            "few_shot takes its examples from the train split, and that is empty",
            hint="give data.split or data.train in the task file, or use strategy zero_shot",
        )
    labels = read_prompt(config.prompt).labels
    wanted = config.shots or min(len(usable), min(len(labels), MOST_LABELS) if labels else OPEN_SHOTS)
    if wanted > len(usable):
        raise InputError(f"few_shot.shots must be at most {len(usable)}, the size of the train split; got {wanted}")
    return config.model_copy(update={"shots": wanted, "examples": _choose(usable, wanted, config.seed, labels)})


def wrap(engine: Engine, config: Config) -> Engine:
    """``engine``, asked after the examples. They precede every question, so all prompts share them as a prefix.

    Raises InputError when ``config`` holds no examples, or fewer or more than its ``shots`` says.
    """
    if not config.examples:
        raise InputError("few_shot.examples is empty; give (input, answer) pairs, or a task whose train split has some")
    if config.shots not in (0, len(config.examples)):
        raise InputError(f"few_shot.shots is {config.shots}, and few_shot.examples holds {len(config.examples)}")
    return Prompted(engine, read_prompt(config.prompt), config.examples)


def _choose(train: Sequence[Example], wanted: int, seed: int, labels: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """``wanted`` different examples, the labels (when there are any) in turn, shuffled."""
    draw = random.Random(seed)
    pool = sorted(train, key=lambda e: e.id)
    draw.shuffle(pool)
    queues: dict[str, list[Example]] = {}
    for example in pool:
        queues.setdefault(str(example.target) if labels else "", []).append(example)
    order = sorted(queues)
    draw.shuffle(order)
    chosen: list[Example] = []
    while len(chosen) < wanted and any(queues.values()):
        for label in order:
            if queues[label] and len(chosen) < wanted:
                chosen.append(queues[label].pop())
    draw.shuffle(chosen)
    return tuple((e.text, str(e.target)) for e in chosen)
