"""What a task file says about its tournament besides the entrants: budget, search, seeds, processes, prices.

budget: {seconds: 600}                     # or {tokens: 200000}: the same for every trained entrant, its search included
search: {trials: 8, space: {train.learning_rate: [1e-5, 1e-3, log], method.rank: [4, 8, 16]}}   # or just: search: 8
seeds: 3                                   # or a list; each trained entrant is trained once a seed
jobs: auto                                 # or how many trainings run side by side, each as a process
prices: {prompt: 0.15, completion: 0.6}    # of remote models, a million tokens; or one such pair a model
machine: {per_hour: 0.10}                  # what an hour of this machine costs
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from luthier.core.catalog import EntryConfig
from luthier.core.config import validate
from luthier.core.errors import InputError
from luthier.tasks.own import Config as TaskConfig


class Budget(EntryConfig):
    """What finding one model may take: ``seconds`` of training with its validations, or ``tokens`` trained on. Trials of a search
    share it equally; repeats with other seeds, which only measure, each get what the first training got."""

    seconds: float | None = Field(default=None, gt=0)
    tokens: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _something(self) -> Budget:
        if self.seconds is None and self.tokens is None:
            raise ValueError("give seconds, tokens or both")
        return self


class Search(EntryConfig):
    """``trials`` of settings from ``space`` (default: the method's), judged by ``metric`` on the validation split only.

    ``sampler`` proposes them: tpe learns from the earlier ones (Bergstra et al. 2011), random does not, grid takes every combination.
    ``pruner`` halving gives up a trial that is among the worse half at a quarter or half of its training (Li et al. 2020), none never.
    ``metric`` defaults to ``train.metric``.
    """

    trials: int = Field(default=8, ge=1, le=1000)
    space: dict[str, Any] = Field(default_factory=dict)
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    pruner: Literal["halving", "none"] = "halving"
    metric: str | None = None
    seed: int = Field(default=0, ge=0)


class Price(EntryConfig):
    """Of a million prompt and completion tokens."""

    prompt: float = Field(ge=0)
    completion: float = Field(ge=0)


class MachinePrice(EntryConfig):
    """``per_hour``: what an hour of this machine costs, in the currency of ``prices``."""

    per_hour: float = Field(gt=0)


class Settings(EntryConfig):
    """The tournament's own keys, checked."""

    budget: Budget | None = None
    search: Search | None = None
    seeds: tuple[int, ...] = ()
    jobs: int | Literal["auto"] = "auto"
    prices: dict[str, Price] = Field(default_factory=dict)
    machine: MachinePrice | None = None

    @field_validator("search", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return as_search(value)

    @field_validator("seeds", mode="before")
    @classmethod
    def _seeds(cls, value: Any) -> Any:
        if value is None:
            return ()
        if isinstance(value, bool):
            raise ValueError("must be how many seeds, or a list of them")
        listed = tuple(range(value)) if isinstance(value, int) else tuple(value)
        if not listed or len(set(listed)) < len(listed) or any(not isinstance(s, int) or s < 0 for s in listed):
            raise ValueError("must be how many seeds (1 or more), or a list of different numbers from 0 on")
        return listed

    @field_validator("jobs", mode="before")
    @classmethod
    def _jobs(cls, value: Any) -> Any:
        if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
            return value
        raise ValueError("must be auto, or how many trainings run side by side (1 or more)")

    @field_validator("prices", mode="before")
    @classmethod
    def _one_price(cls, value: Any) -> Any:
        """``{prompt, completion}`` holds for every remote model."""
        return {ALL: value} if isinstance(value, Mapping) and "prompt" in value else value


ALL = "*"


def as_search(value: Any) -> Any:
    """``8`` means ``{trials: 8}``; 0, false and none mean no search."""
    if value is None or value is False or (isinstance(value, int) and value == 0) or value == "none":
        return None
    return {"trials": value} if isinstance(value, int) and not isinstance(value, bool) else value


def read_settings(config: TaskConfig, origins: Mapping[str, str] | None = None) -> Settings:
    """Check the tournament's keys of a task file. Raises InputError that names key, allowed and given value, and origin."""
    given = {key: getattr(config, key, None) for key in Settings.model_fields}
    return validate(Settings, {k: v for k, v in given.items() if v is not None}, origins=origins or {})


def read_search(value: Any, where: str) -> Search | None:
    """The ``search`` of one entrant. Raises InputError."""
    found = as_search(value)
    if found is None:
        return None
    if not isinstance(found, Mapping):
        raise InputError(f"{where}: search must be a number of trials, or a mapping; got {value!r}")
    return validate(Search, found, where=f"{where}: search")
