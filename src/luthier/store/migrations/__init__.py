"""Numbered migrations (alembic). A new one is a file in ``versions/`` and a new ``HEAD`` in ``store/database.py``."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection


def configuration(connection: Connection | None = None) -> Config:
    """alembic's configuration: the scripts of this folder, on ``connection``."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def upgrade(connection: Connection, to: str = "head") -> None:
    """Bring the database to revision ``to`` inside the caller's transaction: all of it happens, or none."""
    command.upgrade(configuration(connection), to)
