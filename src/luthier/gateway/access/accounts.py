"""What one key, or all keys of one tenant, have used and reserved, against their limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from luthier.core.key import Limits
from luthier.gateway.api.wire import RequestError
from luthier.store.usage import Spent

DAY_S = 86_400


@dataclass(slots=True)
class Bucket:
    """A token bucket: at most ``limit``, refilled with ``limit`` a minute. It is in debt when more was used than had been reserved."""

    limit: int
    level: float
    at_s: float

    def fill(self, at_s: float) -> None:
        """Let in what has flowed since the last time."""
        if at_s > self.at_s:
            self.level = min(self.limit, self.level + (at_s - self.at_s) * self.limit / 60)
            self.at_s = at_s

    def wait_s(self, amount: float) -> float:
        """Seconds until ``amount`` is there; 0.0 when it is."""
        return max(0.0, (amount - self.level) * 60 / self.limit)

    def take(self, amount: float) -> None:
        """Take ``amount``, or give it back when it is negative."""
        self.level = min(self.limit, self.level - amount)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a request may come to. ``bulk``: not held to the rates of a minute and the number at once."""

    prompt_tokens: int
    tokens: int
    cost: float
    bulk: bool = False


@dataclass
class Account:
    """One key (``key:ID``) or tenant (``tenant:NAME``). Of what it used, ``written`` is in the store, ``writing`` on its way there, ``fresh`` only here.

    ``running`` requests count for the limit of those at once, ``held`` are all that have reserved something. ``through`` is what went through
    the buckets of this process since it began. Not safe from several threads by itself: ``Quota`` holds the lock.
    """

    subject: str
    limits: Limits
    requests: Bucket | None = None
    tokens: Bucket | None = None
    running: int = 0
    held: int = 0
    reserved: Spent = field(default_factory=Spent)
    written: Spent = field(default_factory=Spent)
    writing: Spent = field(default_factory=Spent)
    fresh: Spent = field(default_factory=Spent)
    requests_through: int = 0
    tokens_through: int = 0
    touched_s: float = 0.0

    def limit(self, limits: Limits, at_s: float) -> None:
        """New limits; what was used stays used."""
        self.limits = limits
        self.requests = _bucket(self.requests, limits.requests_per_minute, at_s)
        self.tokens = _bucket(self.tokens, limits.tokens_per_minute, at_s)

    def spent(self) -> Spent:
        """Everything so far, the reserved included."""
        total = Spent()
        for part in (self.reserved, self.written, self.writing, self.fresh):
            total.add(part)
        return total

    def new_day(self, *, month: bool) -> None:
        """A day, perhaps a month, begins."""
        for part in (self.written, self.writing, self.fresh):
            part.tokens_day, part.cost_day = 0, 0.0
            part.cost_month = 0.0 if month else part.cost_month

    def check(self, claim: Claim, at_s: float) -> None:
        """Raise RequestError when the claim does not fit: 429, or 400 when it never will."""
        if not self.limits:
            return
        whose = "this key" if self.subject.startswith("key:") else "this tenant"
        if not claim.bulk:
            self._check_rates(claim, at_s, whose)
        self._check_budgets(claim, at_s, whose)

    def _check_rates(self, claim: Claim, at_s: float, whose: str) -> None:
        most = self.limits.concurrent_requests
        if most is not None and self.running >= most:
            raise _refused(f"{whose} may have {most} requests at once, and has", "concurrent_limit_exceeded", 1.0)
        for bucket, amount, what in ((self.requests, 1, "requests"), (self.tokens, claim.tokens, "tokens")):
            if bucket is None:
                continue
            bucket.fill(at_s)
            if amount > bucket.limit:
                raise RequestError(
                    f"{whose} may use {bucket.limit:,} tokens a minute; this request's prompt has about {claim.prompt_tokens:,}, "
                    f"and its answer may have {claim.tokens - claim.prompt_tokens:,}",
                    param="messages" if claim.prompt_tokens >= bucket.limit else "max_tokens",
                    code="tokens_limit_exceeded",
                )
            wait_s = bucket.wait_s(amount)
            if wait_s > 0:
                asked = f"; this request may come to {amount:,} tokens" if what == "tokens" else ""
                said = f"{whose} may use {bucket.limit:,} {what} a minute, of which {max(0, int(bucket.level)):,} are left{asked}"
                raise _refused(said, "rate_limit_exceeded", wait_s, rate_headers([self]))

    def _check_budgets(self, claim: Claim, at_s: float, whose: str) -> None:
        limits = self.limits
        if not budgeted(limits):
            return
        total = self.spent()
        for limit, spent, amount, said in (
            (limits.tokens_per_day, total.tokens_day, claim.tokens, "tokens a day"),
            (limits.cost_per_day, total.cost_day, claim.cost, "of money a day"),
            (limits.cost_per_month, total.cost_month, claim.cost, "of money a month"),
        ):
            if limit is None:
                continue
            if amount > 0 and spent + amount > limit * (1 + 1e-12):
                wait_s = DAY_S - at_s % DAY_S  # at a month's limit, too: its end is days away, but limits get raised
                raise _refused(
                    f"{whose} may use {limit:,} {said}; {_plain(spent)} are used or reserved, "
                    f"and this request may come to {_plain(amount)}",
                    "insufficient_quota",
                    wait_s,
                    {"x-should-retry": "false"},
                )

    def take(self, claim: Claim, at_s: float) -> None:
        """Reserve."""
        self.held += 1
        self.touched_s = at_s
        self._reserve(claim, 1)
        if claim.bulk:
            return
        self.running += 1
        self._flow(1, claim.tokens)

    def release(self, claim: Claim, tokens: int, cost: float, at_s: float, *, keep: bool) -> None:
        """Put what a request took in the place of what it had reserved. ``keep``: the bucket gets nothing back."""
        self.held -= 1
        self.touched_s = at_s
        self._reserve(claim, -1)
        self.fresh.add(Spent(tokens, cost, cost))
        if claim.bulk:
            return
        self.running -= 1
        for bucket in (self.requests, self.tokens):
            if bucket is not None:
                bucket.fill(at_s)
        self._flow(0, max(tokens - claim.tokens, 0) if keep else tokens - claim.tokens)

    def _reserve(self, claim: Claim, sign: int) -> None:
        self.reserved.add(Spent(sign * claim.tokens, sign * claim.cost, sign * claim.cost))
        if not self.held:  # sums of floats drift; nothing reserved is exactly nothing
            self.reserved = Spent()

    def _flow(self, requests: int, tokens: int) -> None:
        self.requests_through += requests
        self.tokens_through += tokens
        if self.requests is not None:
            self.requests.take(requests)
        if self.tokens is not None:
            self.tokens.take(tokens)


def budgeted(limits: Limits) -> bool:
    """Whether there are limits that the store's sums are needed for."""
    return (limits.tokens_per_day, limits.cost_per_day, limits.cost_per_month) != (None, None, None)


def rate_headers(accounts: Sequence[Account]) -> dict[str, str]:
    """``x-ratelimit-*`` as OpenAI writes them, of the account that is nearest to its limit."""
    out: dict[str, str] = {}
    for what in ("requests", "tokens"):
        buckets: list[Bucket] = [bucket for each in accounts if (bucket := getattr(each, what)) is not None]
        if not buckets:
            continue
        tightest = min(buckets, key=lambda bucket: bucket.level / bucket.limit)
        out[f"x-ratelimit-limit-{what}"] = str(tightest.limit)
        out[f"x-ratelimit-remaining-{what}"] = str(max(0, int(tightest.level)))
        out[f"x-ratelimit-reset-{what}"] = duration(tightest.wait_s(tightest.limit))
    return out


def duration(seconds: float) -> str:
    """``0s``, ``120ms``, ``7.66s``, ``6m0s``, ``1h2m3s``: as Go prints it, which is what OpenAI's clients read."""
    if seconds <= 0:
        return "0s"
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < 60:
        return f"{round(seconds, 2):g}s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{f'{hours}h' if hours else ''}{minutes}m{rest}s"


def _bucket(old: Bucket | None, limit: int | None, at_s: float) -> Bucket | None:
    if limit is None:
        return None
    if old is None:
        return Bucket(limit, limit, at_s)
    old.fill(at_s)
    return Bucket(limit, min(limit, old.level + limit - old.limit), at_s)


def _refused(said: str, code: str, wait_s: float, headers: dict[str, str] | None = None) -> RequestError:
    after = {"Retry-After": str(math.ceil(wait_s)), "retry-after-ms": str(math.ceil(wait_s * 1000))}
    again = "" if code == "insufficient_quota" else f"; try again in {duration(wait_s)}"
    return RequestError(f"{said}{again}", status=429, code=code, headers=after | (headers or {}))


def _plain(amount: float) -> str:
    return f"{amount:,}" if isinstance(amount, int) else f"{amount:,.6g}"
