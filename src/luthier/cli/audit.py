"""``luthier audit``: who did what, and whether the record of it is whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from luthier.store.audit import AuditRecord


def register(app: typer.Typer) -> None:
    """Add the commands."""
    audit = typer.Typer(
        help="The audit log: keys, limits, models loaded and unloaded, configurations, rollbacks, hand-overs.",
        invoke_without_command=True,
    )
    app.add_typer(audit, name="audit")

    @audit.callback()
    def list_all(
        context: typer.Context,
        *,
        action: Annotated[str | None, typer.Option(help="Only this, such as key.revoke, or 'key.*'.")] = None,
        actor: Annotated[str | None, typer.Option(help="Only by this key or user:NAME.")] = None,
        target: Annotated[str | None, typer.Option(help="Only what was done to this.")] = None,
        since: Annotated[
            str | None, typer.Option(metavar="TIME", help="From this time (UTC), such as 2026-11-20.")
        ] = None,
        limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 50,
        as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    ) -> None:
        """List what was done, newest first."""
        if context.invoked_subcommand is not None:
            return
        from dataclasses import asdict

        from luthier.cli._print import say, show, show_json
        from luthier.store.audit import list_audit
        from luthier.store.database import open_store

        found = list_audit(open_store(), action=action, actor=actor, target=target, since=since, limit=limit)
        if as_json:
            show_json([asdict(row) for row in found])
        elif found:
            show(_table(found))
        else:
            say("The audit log has nothing like that.")

    @audit.command()
    def verify(
        expect: Annotated[
            str | None,
            typer.Option(metavar="HASH", help="The hash of a row that must be there: one that an earlier verify said."),
        ] = None,
    ) -> None:
        """Check that no row was changed, removed or slipped in; prints the newest hash, to be kept elsewhere."""
        from luthier.cli._print import out, say
        from luthier.store.audit import verify as verify_chain
        from luthier.store.database import open_store

        last = verify_chain(open_store(), expect)
        if last is None:
            say("The audit log is empty.")
            return
        out().print(last.hash, markup=False)
        say(
            f"{last.number:,} rows are as they were written. Keep this hash elsewhere: luthier audit verify --expect HASH"
        )


def _table(found: list[AuditRecord]) -> RenderableType:
    from rich.markup import escape

    from luthier.cli._print import table
    from luthier.store.database import to_json

    rows = [
        (
            f"{row.number:,}",
            row.at[:19].replace("T", " "),
            escape(row.actor),
            escape(row.address),
            row.action,
            escape(row.target),
            escape(row.tenant),
            escape(to_json(row.detail)) if row.detail else "",
        )
        for row in found
    ]
    columns = ("number", "time (UTC)", "who", "from", "what", "to what", "tenant", "detail")
    return table(columns, rows, right=("number",))
