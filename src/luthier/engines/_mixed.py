"""Prompts for several engines at once: those that share a base and can, answer in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.core.engine import GENERATE, Engine, Generation, Sampling, require
from luthier.core.errors import InputError
from luthier.core.message import Prompt
from luthier.core.run import Progress, no_progress
from luthier.models.mixed import groups


def generate_mixed(
    engines: Sequence[Engine],
    prompts: Sequence[Prompt],
    sampling: Sampling | None = None,
    progress: Progress = no_progress,
) -> list[Generation]:
    """One answer a prompt, ``prompts[i]`` by ``engines[i]``, in order; each as that engine would answer alone (in fp32, to rounding).

    Engines of adapters on one base in memory (``load_many``) decode their rows together where the adapters' kinds allow
    (``models.mixed``: LoRA and (IA)3 of any sizes, the bare base, the bottleneck adapters of one kind); the rest, and engines of any
    other sort, answer their own prompts one engine after the other. Without ``sampling``: greedy, at most 256 tokens.

    Raises InputError when there are not as many engines as prompts, and what the engines raise.
    """
    if len(engines) != len(prompts):
        raise InputError(f"engines must be one a prompt; got {len(engines)} engines for {len(prompts)} prompts")
    sampling = sampling or Sampling()
    out: list[Generation | None] = [None] * len(prompts)
    for engine in dict.fromkeys(engines):
        require(engine, GENERATE)
    done = 0
    for places in _together(engines):
        asked = [prompts[place] for place in places]
        told = _Offset(progress, done, len(prompts))
        keys = [_key(engines[place]) for place in places]
        lead: Any = engines[places[0]]
        if len(set(keys)) > 1:
            made = lead.generate_as(keys, asked, sampling, told)
        else:
            made = lead.generate(asked, sampling, told)
        for place, answer in zip(places, made, strict=True):
            out[place] = answer
        done += len(places)
    return [answer for answer in out if answer is not None]


def _together(engines: Sequence[Engine]) -> list[list[int]]:
    """The places whose prompts are asked in one call."""
    bases: dict[Any, list[int]] = {}
    for place, engine in enumerate(engines):
        base = getattr(engine, "shared_base", None)
        bases.setdefault(id(engine if base is None else base), []).append(place)
    out = []
    for places in bases.values():
        base = getattr(engines[places[0]], "shared_base", None)
        if base is None:
            out.append(places)
            continue
        keys = [_key(engines[place]) for place in places]
        with base.using(*dict.fromkeys(keys)) as loaded:
            found = groups(loaded, keys)
        out += [[places[number] for number in group] for group in found]
    return out


def _key(engine: Any) -> Any:
    return getattr(engine, "key", id(engine))


class _Offset:
    """Progress of one call among several."""

    def __init__(self, progress: Progress, before: int, total: int) -> None:
        self._progress, self._before, self._total = progress, before, total

    def __call__(self, stage: str, done: int, total: int) -> None:
        self._progress(stage, self._before + done, self._total)
