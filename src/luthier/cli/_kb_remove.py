"""``luthier kb rm``."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.cli._knowledge import Name


def register(kb: typer.Typer) -> None:
    """Add the command."""

    @kb.command("rm")
    def remove(
        name: Name,
        documents: Annotated[
            list[str] | None,
            typer.Argument(metavar="[DOCUMENT...]", help="Ids, sources or shell patterns of sources: '*.pdf'."),
        ] = None,
        yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    ) -> None:
        """Remove documents, or without any the whole base (after a question)."""
        import sys

        from luthier.cli._print import out
        from luthier.core.errors import InputError
        from luthier.knowledge.base import describe_base, remove_base, remove_documents

        if documents:
            gone = remove_documents(name, documents)
            out().print(f"{gone:,} document{'s' if gone > 1 else ''} removed from {name}", markup=False)
            return
        count = len(describe_base(name).documents)
        if not yes:
            if not sys.stdin.isatty():
                raise InputError(f"removing {name} cannot be undone, so it asks before it does", hint="add --yes")
            typer.confirm(f"Remove {name} with its {count:,} documents?", abort=True, err=True)
        remove_base(name)
        out().print(f"{name} is removed", markup=False)
