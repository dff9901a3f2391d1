"""What keys have used: by day, tenant, key and model. Servers add to it in batches and read their budgets' sums from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Select, case, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from luthier.core.errors import InputError, did_you_mean
from luthier.store.database import Store
from luthier.store.tables import rates, usage

_STALE_S = 3600.0
_AT_ONCE = 400  # below SQLite's old limit of 999 variables


@dataclass(slots=True)
class Used:
    """Counts of one row of the table."""

    requests: int = 0
    errors: int = 0
    cache_hits: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    def add(self, other: Used) -> None:
        """Add ``other`` to this."""
        self.requests += other.requests
        self.errors += other.errors
        self.cache_hits += other.cache_hits
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.cost += other.cost


@dataclass(slots=True)
class Spent:
    """What an account has used up of its budgets today and in this month (UTC)."""

    tokens_day: int = 0
    cost_day: float = 0.0
    cost_month: float = 0.0

    def add(self, other: Spent) -> None:
        """Add ``other`` to this."""
        self.tokens_day += other.tokens_day
        self.cost_day += other.cost_day
        self.cost_month += other.cost_month


def add_usage(store: Store, used: Mapping[tuple[str, str, str, str], Used]) -> None:
    """Add counts to the rows (day, tenant, key, model), in one transaction."""
    if not used:
        return
    rows = [
        {"day": day, "tenant": tenant, "key_id": key_id, "model": model, **asdict(counts)}
        for (day, tenant, key_id, model), counts in used.items()
    ]
    with store.write() as connection:
        made = _insert(connection)(usage)
        sums = {name: usage.c[name] + made.excluded[name] for name in Used.__slots__}
        connection.execute(made.on_conflict_do_update(index_elements=list(usage.primary_key), set_=sums), rows)


def spent_by(store: Store, day: str, subjects: Sequence[str]) -> dict[str, Spent]:
    """What ``key:ID`` and ``tenant:NAME`` subjects have used on ``day`` (``2026-11-20``) and in its month: each of them, also when it is nothing."""
    out = {subject: Spent() for subject in subjects}
    with store.read() as connection:
        for kind, column in (("key", usage.c.key_id), ("tenant", usage.c.tenant)):
            names = [subject.partition(":")[2] for subject in subjects if subject.startswith(f"{kind}:")]
            for start in range(0, len(names), _AT_ONCE):
                for row in connection.execute(_sums(column, day, names[start : start + _AT_ONCE])):
                    out[f"{kind}:{row.name}"] = Spent(int(row.tokens_day), row.cost_day, row.cost_month)
    return out


def _sums(column: Any, day: str, names: Sequence[str]) -> Select[Any]:
    today = usage.c.day == day
    tokens = usage.c.prompt_tokens + usage.c.completion_tokens
    return (
        select(
            column.label("name"),
            func.sum(case((today, tokens), else_=0)).label("tokens_day"),
            func.sum(case((today, usage.c.cost), else_=0.0)).label("cost_day"),
            func.sum(usage.c.cost).label("cost_month"),
        )
        .where(usage.c.day >= f"{day[:7]}-01", usage.c.day <= f"{day[:7]}-31", column.in_(names))
        .group_by(column)
    )


BY = ("day", "tenant", "key_id", "model")


def list_usage(
    store: Store,
    *,
    since: str = "",
    until: str = "9999",
    tenant: str | None = None,
    by: Iterable[str] = BY,
) -> list[dict[str, Any]]:
    """Sums by ``day``, ``tenant``, ``key_id`` and ``model``, whichever of them are named. ``since`` and ``until`` are days (``2026-11-20``), both included. Raises InputError."""
    by = [name for name in by if name]
    for name in by:
        if name not in BY:
            raise InputError(f"usage is summed by {', '.join(BY)}; got {name!r}. {did_you_mean(name, BY)}")
    columns = [usage.c[name] for name in by]
    query = select(*columns, *(func.sum(usage.c[name]).label(name) for name in Used.__slots__))
    query = query.where(usage.c.day >= since, usage.c.day <= until).group_by(*columns).order_by(*columns)
    if tenant is not None:
        query = query.where(usage.c.tenant == tenant)
    with store.read() as connection:
        return [dict(row) for row in connection.execute(query).mappings() if row["requests"] is not None]


def share_rates(
    store: Store, process: str, mine: Mapping[str, tuple[int, int]], at_s: float
) -> dict[tuple[str, str], tuple[int, int]]:
    """Write how many requests and tokens went through this process' buckets, by subject; returns those of the other processes."""
    if mine:
        rows = [
            {"process": process, "subject": subject, "requests": counts[0], "tokens": counts[1], "at_s": at_s}
            for subject, counts in mine.items()
        ]
        with store.write() as connection:
            made = _insert(connection)(rates)
            new = {name: made.excluded[name] for name in ("requests", "tokens", "at_s")}
            connection.execute(made.on_conflict_do_update(index_elements=list(rates.primary_key), set_=new), rows)
            connection.execute(delete(rates).where(rates.c.at_s < at_s - _STALE_S))
    with store.read() as connection:
        others = connection.execute(select(rates).where(rates.c.process != process)).all()
    return {(row.process, row.subject): (row.requests, row.tokens) for row in others}


def end_rates(store: Store, process: str) -> None:
    """Forget what a process let through."""
    with store.write() as connection:
        connection.execute(delete(rates).where(rates.c.process == process))


def _insert(connection: Connection) -> Any:
    return postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
