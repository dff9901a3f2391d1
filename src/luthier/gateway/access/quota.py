"""What keys and tenants may use: rates, concurrent requests, tokens of a day, money of a day and a month.

A request reserves what it may come to (its prompt's length, its token limit) before anything is asked, from its key and its tenant or from
neither, and settles with what it really took. Rates are token buckets; budgets are sums of the store's usage table, which every server
process on the store adds to and reads about once a second (``Quota.sync``), so they survive restarts and hold for all processes together.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from luthier.core.key import Limits
from luthier.gateway.access.accounts import Account, Claim, budgeted, rate_headers
from luthier.gateway.access.keys import Keys
from luthier.gateway.exchange import GONE, Exchange
from luthier.store.database import Store
from luthier.store.home import new_id
from luthier.store.usage import Spent, Used, add_usage, end_rates, share_rates, spent_by

if TYPE_CHECKING:
    from luthier.gateway.service import Service

_IMAGE_TOKENS = 800
_TURN_TOKENS = 4
_IDLE_S = 3600.0

logger = logging.getLogger("luthier.gateway")

Row = tuple[str, str, str, str]  # day, tenant, key, model


class Quota:
    """The accounts of one server process. ``admit`` and ``settle`` are exact within it, and safe from several threads."""

    def __init__(self, store: Store, keys: Keys, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._keys = keys
        self._clock = clock
        self._lock = threading.Lock()
        self._accounts: dict[str, Account] = {}
        self._used: dict[Row, Used] = {}
        self._process = new_id("process")
        self._shared: dict[str, tuple[int, int]] = {}
        self._others: dict[tuple[str, str], tuple[int, int]] = {}
        self._day_number = -1
        self._day = ""

    def admit(self, service: Service, exchange: Exchange, *, bulk: bool = False) -> None:
        """Reserve for a request, and settle when it is finished. Raises RequestError 429, or 400 for one that could never pass.

        ``bulk``: a line of a batch, which is not held to the rates of a minute and the number at once.
        """
        prompt = expected_tokens(exchange)
        most = _answer_tokens(service, exchange)
        claim = Claim(prompt, prompt + most, _most_cost(service, exchange.model, prompt, most), bulk)
        with self._lock:
            at_s = self._now()
            accounts = tuple(self._account(*each, at_s) for each in self._subjects(exchange))
            for account in accounts:
                account.check(claim, at_s)
            for account in accounts:
                account.take(claim, at_s)
            if not bulk:
                exchange.headers.update(rate_headers(accounts))
        exchange.finishers.append(lambda ended: self.settle(accounts, claim, ended))

    def settle(self, accounts: Iterable[Account], claim: Claim, exchange: Exchange) -> None:
        """Put what a request took in the place of what it had reserved."""
        prompt, completion, cost = took(exchange)
        caller, left = exchange.caller, exchange.error == GONE
        model = exchange.served.name if exchange.served is not None else exchange.model
        with self._lock:
            at_s = self._now()
            for account in accounts:
                account.release(claim, prompt + completion, cost, at_s, keep=left)
            row = self._used.setdefault((self._day, caller.tenant, caller.key_id, model), Used())
            row.add(
                Used(
                    requests=1,
                    errors=int(bool(exchange.error) and not left),
                    cache_hits=int(bool(exchange.cache)),
                    prompt_tokens=prompt,
                    completion_tokens=completion,
                    cost=cost,
                )
            )

    def sync(self) -> None:
        """Write what was used since the last time, and read what all processes have used. Called about once a second, by one thread.

        Raises StoreError when the store refuses; nothing is lost then, the next call writes it.
        """
        with self._lock:
            self._now()
            day, used, self._used = self._day, self._used, {}
            for account in self._accounts.values():
                account.writing, account.fresh = account.fresh, Spent()
            watched = [subject for subject, each in self._accounts.items() if budgeted(each.limits)]
        try:
            add_usage(self._store, used)
            with self._lock:
                used = {}  # from here on it is written, whatever fails
            totals = spent_by(self._store, day, watched)
        except BaseException:
            with self._lock:
                self._put_back(used)
            raise
        with self._lock:
            self._take_over(day, totals)
            self._forget()
        self._share()

    def close(self) -> None:
        """Write what is left; other processes forget this one."""
        self.sync()
        if self._shared:
            end_rates(self._store, self._process)

    def state(self) -> dict[str, Any]:
        """Counts for /health."""
        with self._lock:
            return {"accounts": len(self._accounts), "unwritten": len(self._used)}

    def _subjects(self, exchange: Exchange) -> Iterable[tuple[str, Limits]]:
        caller, none = exchange.caller, Limits()
        yield f"key:{caller.key_id}", self._keys.limits.get(caller.key_id, none)
        yield f"tenant:{caller.tenant}", self._keys.tenants.get(caller.tenant, none)

    def _account(self, subject: str, limits: Limits, at_s: float) -> Account:
        account = self._accounts.get(subject)
        if account is not None and (account.limits is limits or account.limits == limits):
            return account
        written = None
        if budgeted(limits) and not (account is not None and budgeted(account.limits)):
            written = spent_by(self._store, self._day, [subject])[subject]  # once; from then on sync keeps it
        if account is None:
            account = self._accounts[subject] = Account(subject, limits)
        account.limit(limits, at_s)
        account.touched_s = at_s
        account.written = written or account.written
        return account

    def _now(self) -> float:
        """The time (Unix). When a day has ended, its sums end with it."""
        at_s = self._clock()
        if at_s // 86_400 != self._day_number:
            day = datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d")
            for account in self._accounts.values():
                account.new_day(month=day[:7] != self._day[:7])
            self._day_number, self._day = int(at_s // 86_400), day
        return at_s

    def _put_back(self, used: Mapping[Row, Used]) -> None:
        """The store refused: what was to be written is still to be written."""
        for key, row in used.items():
            self._used.setdefault(key, Used()).add(row)
        for account in self._accounts.values():
            if used:
                account.fresh.add(account.writing)
            else:
                account.written.add(account.writing)
            account.writing = Spent()

    def _take_over(self, day: str, totals: Mapping[str, Spent]) -> None:
        for subject, account in self._accounts.items():
            if subject in totals and day == self._day:
                account.written = totals[subject]
            else:  # it came, or a day began, while the store was being read
                account.written.add(account.writing)
            account.writing = Spent()

    def _forget(self) -> None:
        """Drop accounts that nobody has used for an hour: their buckets are full, and the store knows their sums."""
        oldest = self._clock() - _IDLE_S
        for subject, account in list(self._accounts.items()):
            if account.touched_s < oldest and not account.held and account.fresh == Spent():
                del self._accounts[subject]

    def _share(self) -> None:
        """Tell other processes what went through the buckets here, and let what went through theirs flow out of these."""
        with self._lock:
            limited = {s: each for s, each in self._accounts.items() if each.requests or each.tokens}
            through = {s: (each.requests_through, each.tokens_through) for s, each in limited.items()}
            mine = {subject: counts for subject, counts in through.items() if self._shared.get(subject) != counts}
        if not through:
            return
        others = share_rates(self._store, self._process, mine, self._clock())
        with self._lock:
            self._shared = through
            for key, counts in others.items():
                before, account = self._others.get(key, counts), self._accounts.get(key[1])
                if account is not None and account.requests is not None:
                    account.requests.take(counts[0] - before[0])
                if account is not None and account.tokens is not None:
                    account.tokens.take(counts[1] - before[1])
            self._others = others


def expected_tokens(exchange: Exchange) -> int:
    """About how many tokens a request's prompts have, counting nothing: four letters of English a token, one sign of Chinese."""
    tokens = exchange.expected_tokens
    for messages in exchange.messages:
        for message in messages:
            content = message.get("content") or ""
            parts = [content] if isinstance(content, str) else content
            for part in parts:
                text = part if isinstance(part, str) else part.get("text")
                tokens += tokens_of(text) if isinstance(text, str) else _IMAGE_TOKENS
            tokens += _TURN_TOKENS
    return tokens


def tokens_of(text: str) -> int:
    """About how many tokens a text has."""
    if text.isascii():
        return -(-len(text) // 4)
    return -(-len(text.encode("utf-8", "surrogatepass")) // 3)


def took(exchange: Exchange) -> tuple[int, int, float]:
    """Prompt tokens, answer tokens and cost of a request that is over.

    Of an answer that broke off the engine has not said what it took: it is judged by the text that was handed out, so that leaving just before the
    end does not make it free.
    """
    prompt, completion, _ = exchange.usage
    broken = [index for index in exchange.texts if index not in exchange.made]
    if not broken or exchange.cache:
        return prompt, completion, exchange.cost
    prompt = prompt or expected_tokens(exchange)
    completion += sum(tokens_of("".join(exchange.texts[index])) for index in broken)
    cost = exchange.served.price.of_tokens(prompt, completion) if exchange.served is not None else 0.0
    return prompt, completion, cost


def _answer_tokens(service: Service, exchange: Exchange) -> int:
    """The most tokens that a request's answers may have."""
    if not exchange.messages:
        return 0
    most = exchange.parameters.get("max_new_tokens")
    if most is None:
        served = service.models.get(exchange.model)
        most = served.max_new_tokens if served is not None else 256
    return int(most) * exchange.n * len(exchange.messages)


def _most_cost(service: Service, model: str, prompt: int, completion: int) -> float:
    """The most that so many tokens may cost; of a route that is not a model itself, what its dearest model would take."""
    served = service.models.get(model)
    prices = [served.price] if served is not None else [each.price for each in service.models.values()]
    return max((price.of_tokens(prompt, completion) for price in prices), default=0.0)
