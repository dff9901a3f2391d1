"""What is done when a target fails, is slow or does not answer: retries, timeouts, hedges, circuit breakers, health checks.

Every setting can be given to a model and to a route; what a route says goes before what its targets say.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

Section = TypeVar("Section", bound=BaseModel)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Retries(_Section):
    """Further tries at one target after an error that may pass. Before the n-th one passes a random time of up to ``base_s * 2**(n-1)``, and
    at most ``most_s`` (exponential backoff with full jitter); a target that says how long to wait is waited for, unless that is longer
    than ``most_s``. A bare number is ``attempts``."""

    attempts: int = Field(default=2, ge=0, le=10)
    base_s: float = Field(default=0.2, gt=0)
    most_s: float = Field(default=5.0, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _bare_number(cls, value: Any) -> Any:
        return {"attempts": value} if isinstance(value, int) else value


class Hedge(_Section):
    """A second try beside the first when that has given nothing for ``after_s`` (left out: for longer than 95 of 100 answers of this target
    took lately). The first piece wins and the other try is stopped. At most ``most_share`` of the requests are asked twice."""

    after_s: float | None = Field(default=None, gt=0)
    most_share: float = Field(default=0.1, gt=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _bare_value(cls, value: Any) -> Any:
        if value is True:
            return {}
        return {"after_s": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


class Breaking(_Section):
    """A target of whose last requests (those of ``window_s``, ``least`` of them or more) the share ``error_rate`` failed is not asked for
    ``open_s``; then ``probes`` requests at once try it, and their success closes the circuit again."""

    error_rate: float = Field(default=0.5, gt=0, le=1)
    least: int = Field(default=5, ge=1)
    window_s: float = Field(default=30.0, gt=0)
    open_s: float = Field(default=10.0, gt=0)
    probes: int = Field(default=1, ge=1)


class Health(_Section):
    """An engine that can tell is asked every ``every_s`` whether it is well; after ``failures`` answers in a row that it is not, or none within
    ``timeout_s``, it gets no requests until it is."""

    every_s: float = Field(default=10.0, gt=0)
    timeout_s: float = Field(default=5.0, gt=0)
    failures: int = Field(default=2, ge=1)


class Resilience(_Section):
    """What a model and a route may both say. ``timeout_s`` bounds an answer from the request to its last token, the wait for a turn
    included; ``first_token_timeout_s`` the time to the first piece of a streamed one."""

    timeout_s: float | None = Field(default=None, gt=0)
    first_token_timeout_s: float | None = Field(default=None, gt=0)
    retries: Retries | None = None
    hedge: Hedge | None = None

    @model_validator(mode="before")
    @classmethod
    def _off(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("hedge") is False:
            return {key: value for key, value in data.items() if key != "hedge"}
        return data


class Policy(BaseModel):
    """``Resilience`` with every question answered. ``timeout_s`` None is for ever."""

    model_config = ConfigDict(frozen=True)

    timeout_s: float | None = 600.0
    first_token_timeout_s: float | None = None
    retries: Retries = Retries()
    hedge: Hedge | None = None

    def under(self, said: Resilience, *, whole: bool = True) -> Policy:
        """This policy, except for what ``said`` says; not ``whole``: its own ``timeout_s`` stays."""
        names = [name for name in Resilience.model_fields if whole or name != "timeout_s"]
        values = {name: getattr(said, name) for name in names}
        found = {name: value for name, value in values.items() if value is not None}
        return self.model_copy(update=found) if found else self
