"""Databases as names of models, ``db:NAME``: what is said of one, and how it is opened."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from luthier.apps.sql.ask import MOST_REPAIRS, Asking
from luthier.apps.sql.connect import connect
from luthier.apps.sql.engine import PREFIX, SqlEngine
from luthier.apps.sql.limits import Limits
from luthier.apps.sql.notes import check_notes, read_notes
from luthier.core.errors import InputError

if TYPE_CHECKING:
    from luthier.store.database import Store


class DatabaseConfig(BaseModel):
    """A database that is asked. ``url`` as ``luthier ask --db`` takes it, or ``url_env``: the environment variable that holds it (a password need not
    stand in a file). ``model`` writes the queries, on ``engine`` with its
    ``options``. ``notes`` are descriptions, or a YAML file of them. The rest is as in
    ``luthier ask``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = ""
    url_env: str = ""
    model: str = Field(min_length=1)
    engine: str = "auto"
    options: dict[str, Any] | None = None
    notes: dict[str, Any] | str = Field(default_factory=dict)
    private: tuple[str, ...] = ()
    samples: int = Field(default=3, ge=0, le=20)
    repairs: int = Field(default=2, ge=0, le=MOST_REPAIRS)
    words: bool = True
    constrained: bool | None = None
    rows: int = Field(default=200, ge=1, le=100_000)
    timeout_s: float = Field(default=30.0, gt=0, le=3600)
    memory_mb: int = Field(default=1024, ge=64)

    @model_validator(mode="after")
    def _one_url(self) -> DatabaseConfig:
        if bool(self.url) == bool(self.url_env):
            raise ValueError("exactly one of url and url_env must be given")
        return self

    def address(self) -> str:
        """The URL. Raises InputError when its variable is not set."""
        found = self.url or os.environ.get(self.url_env, "")
        if not found:
            raise InputError(f"url_env: the environment variable {self.url_env} is not set")
        return found


def open_database(name: str, config: DatabaseConfig, store: Store, shared: dict[Any, Any] | None = None) -> SqlEngine:
    """The database ``name`` with the model that writes for it. Raises InputError, EngineError, NotFoundError."""
    from luthier.strategies._load import load_many

    limits = Limits(config.timeout_s, config.rows, config.memory_mb)
    notes = read_notes(Path(config.notes) if isinstance(config.notes, str) else config.notes)
    database = connect(config.address(), limits, samples=config.samples, private=config.private)
    try:
        check_notes(notes, database.schema())
        how = Asking(notes=notes, repairs=config.repairs, words=config.words, constrained=config.constrained)
        loaded = load_many(
            [config.model], engine=config.engine, options=config.options, store=store, raw=True, shared=shared
        )
        writer = loaded[config.model]
        return SqlEngine(name, database, writer, how, limits)
    except BaseException:
        database.close()
        raise


def open_named(
    name: str,
    *,
    engine: str = "auto",
    store: Store,
    options: Mapping[str, Any] | None = None,
    raw: bool = False,
    shared: dict[Any, Any] | None = None,
) -> SqlEngine:
    """``db:NAME`` as ``strategies._load`` opens it, whose arguments these are; ``options`` are the fields of ``DatabaseConfig``, and ``raw`` changes
    nothing: the model that writes queries is always asked as it is. Raises InputError without options."""
    own = name.removeprefix(PREFIX)
    if not options:
        raise InputError(
            f"nothing is known of the database {own!r}",
            hint=f"name it in the gateway's configuration: databases: {{{own}: {{url: ..., model: ...}}}}",
        )
    try:
        config = DatabaseConfig.model_validate({**options, **({"engine": engine} if engine != "auto" else {})})
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    return open_database(own, config, store, shared)
