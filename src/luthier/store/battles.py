"""Battles: two models' answers to one prompt, and who was preferred, by whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from sqlalchemy import RowMapping, func, select
from sqlalchemy.dialects import postgresql, sqlite

from luthier.core.digest import digest_json
from luthier.core.errors import InputError
from luthier.store.database import Store, battles
from luthier.store.home import disk_errors, new_id, now

Winner = Literal["model_a", "model_b", "tie", "skip"]
Source = Literal["human", "judge"]
DEFAULT_ARENA = "arena"


@dataclass(frozen=True)
class Battle:
    """One vote on two answers to ``prompt``.

    ``winner`` is model_a, model_b, tie, or skip (a human did not want to say). ``source`` is human or judge, ``voter`` who exactly.
    ``shown`` is the order in which the voter saw the answers: ab, ba, or empty when that is not known or both orders were seen.
    Digests are of what answered, empty for outsiders. ``key`` is given to what must not be voted on twice; left empty, it follows from
    arena, pair, source and voter. ``detail`` holds the voter's reasons.
    """

    prompt: str
    model_a: str
    model_b: str
    answer_a: str
    answer_b: str
    winner: Winner
    source: Source
    voter: str
    arena: str = DEFAULT_ARENA
    shown: Literal["", "ab", "ba"] = ""
    digest_a: str = ""
    digest_b: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    id: str = ""
    created_at: str = ""

    def __post_init__(self) -> None:
        for name, allowed in (("winner", get_args(Winner)), ("source", get_args(Source)), ("shown", ("", "ab", "ba"))):
            if getattr(self, name) not in allowed:
                told = ", ".join(repr(each) for each in allowed)
                raise InputError(f"{name} must be one of {told}; got {getattr(self, name)!r}")
        if self.model_a == self.model_b:
            raise InputError(f"a battle needs two models; got {self.model_a!r} twice")

    @property
    def pair(self) -> str:
        """What was voted on, whichever answer is named first: prompt, models and answers."""
        return pair_of(self.prompt, (self.model_a, self.answer_a), (self.model_b, self.answer_b))


def pair_of(prompt: str, one: tuple[str, str], other: tuple[str, str]) -> str:
    """A digest of a prompt and two (model, answer), in whichever order these are given."""
    return digest_json([prompt, *sorted([list(one), list(other)])])


def vote_key(arena: str, pair: str, source: str, voter: str) -> str:
    """One voter votes once on one pair in one arena."""
    return digest_json([arena, pair, source, voter])


def record_battles(store: Store, many: Sequence[Battle]) -> int:
    """Write battles in one transaction; those whose key is there already are left as they are. Returns how many were new.

    Several processes may write at once: the key decides, so no vote is counted twice.
    """
    rows = [_row(battle) for battle in many]
    if not rows:
        return 0
    with store.write() as connection:
        dialect = {"sqlite": sqlite, "postgresql": postgresql}[connection.dialect.name]
        statement = dialect.insert(battles).on_conflict_do_nothing(index_elements=["key"]).returning(battles.c.id)
        return len(connection.execute(statement, rows).all())


def known_keys(store: Store, arena: str) -> frozenset[str]:
    """Keys of an arena's battles: what an interrupted run did already."""
    with store.read() as connection:
        return frozenset(connection.execute(select(battles.c.key).where(battles.c.arena == arena)).scalars())


def list_battles(store: Store, arena: str | None = None, *, source: Source | None = None) -> list[Battle]:
    """Battles, oldest first."""
    query = select(battles).order_by(battles.c.created_at, battles.c.id)
    if arena is not None:
        query = query.where(battles.c.arena == arena)
    if source is not None:
        query = query.where(battles.c.source == source)
    with store.read() as connection:
        return [_battle(row) for row in connection.execute(query).mappings()]


def list_arenas(store: Store) -> dict[str, int]:
    """Every arena with its number of battles, sorted by name."""
    query = select(battles.c.arena, func.count()).group_by(battles.c.arena).order_by(battles.c.arena)
    with store.read() as connection:
        return {str(name): int(count) for name, count in connection.execute(query)}


def arena_folder(store: Store, arena: str) -> Path:
    """Where an arena's logs and pictures are; made when it is missing."""
    if not arena or arena.startswith(".") or "/" in arena or "\\" in arena or len(arena) > 128:
        raise InputError(
            f"arena must be a name of at most 128 characters without slashes or a leading dot; got {arena!r}"
        )
    place = store.home.root / "arenas" / arena
    with disk_errors(place):
        place.mkdir(parents=True, exist_ok=True)
    return place


def _row(battle: Battle) -> dict[str, Any]:
    row = {f.name: getattr(battle, f.name) for f in fields(Battle)}
    return row | {
        "id": battle.id or new_id("battle"),
        "key": battle.key or vote_key(battle.arena, battle.pair, battle.source, battle.voter),
        "created_at": battle.created_at or now(),
        "pair": battle.pair,
        "detail": dict(battle.detail),
    }


_NAMES = tuple(f.name for f in fields(Battle))


def _battle(row: RowMapping) -> Battle:
    return Battle(**{name: row[name] for name in _NAMES})
