"""``luthier kb``: documents in, and what answers a question out. The commands are in the files ``_kb_*.py`` beside this one."""

from __future__ import annotations

import importlib
from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    """Add the commands."""
    kb = typer.Typer(
        help="Knowledge bases: add files, folders and pages; search them, ask them, measure and tune them.",
        no_args_is_help=True,
    )
    app.add_typer(kb, name="kb")
    for file in sorted(Path(__file__).parent.glob("_kb_*.py")):
        importlib.import_module(f"luthier.cli.{file.stem}").register(kb)
