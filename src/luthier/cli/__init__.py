"""The command line: parse, call one function, print. One file per command; each defines ``register(app)``."""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path

import typer

from luthier.core.errors import LuthierError


def build_app() -> typer.Typer:
    """The typer application with every command file of this folder."""
    app = typer.Typer(
        name="luthier",
        help="Adapt a foundation model in every way, prove which way is best, serve the winner, learn from what happens.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for file in sorted(Path(__file__).parent.glob("*.py")):
        if not file.stem.startswith("_"):
            importlib.import_module(f"luthier.cli.{file.stem}").register(app)
    return app


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Errors that Luthier raises on purpose become one clear message and their own exit code."""
    # What a library says to its own developers is not for the person at the terminal.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    try:
        build_app()(args=arguments, standalone_mode=True)
    except LuthierError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    except SystemExit as exit_:
        if exit_.code == 130:  # typer turns KeyboardInterrupt into this
            sys.stderr.write("interrupted; run the same command again to go on where it stopped\n")
        raise
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    return 0
