"""``luthier guard``: what guardrails find in texts, which there are, and what was handed over to a person."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from luthier.gateway.guard.check import Checked

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    guard = typer.Typer(
        no_args_is_help=True, help="Guardrails: try rules on texts before they stand in front of a model."
    )
    app.add_typer(guard, name="guard")
    guard.command()(check)
    guard.command("list")(list_)
    guard.command()(handovers)


def check(
    what: Annotated[str, typer.Argument(metavar="TEXT|FILE.jsonl", help='A text, or rows with "text" or "messages".')],
    *,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help="The gateway's YAML; its section guardrails counts."),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="GUARDRAIL", help="Only these; without --config these as they are. Repeat it."),
    ] = None,
    on: Annotated[str, typer.Option(help="input, or output: read it as an answer.")] = "input",
    as_json: _Json = False,
) -> None:
    """Show what guardrails find, and what would be done.

    Without --config: pii, prompt_injection and jailbreak as they are.
    """
    from dataclasses import asdict

    from luthier.cli import _print
    from luthier.core.errors import InputError
    from luthier.gateway.guard.check import check as look
    from luthier.gateway.guard.check import conversation_from, open_for, read_rows

    if on not in ("input", "output"):
        raise InputError(f"--on must be input or output; got {on!r}")
    rows = read_rows(Path(what)) if what.endswith(".jsonl") else [what]
    guard = open_for(config, name or ())
    try:
        results = [look(guard.rails, conversation_from(row, on), on) for row in rows]  # type: ignore[arg-type]
    finally:
        guard.close()
    if as_json:
        _print.show_json([asdict(result) for result in results] if what.endswith(".jsonl") else asdict(results[0]))
        return
    _show(results)


def _show(results: list[Checked]) -> None:
    from rich.markup import escape

    from luthier.cli import _print

    rows = [
        (str(number), found.guardrail, f"[bold]{found.action}[/]", found.kind, found.role, f"{found.start}-{found.end}",
         f"{found.score:.2f}", escape(found.reason))
        for number, result in enumerate(results, 1) for found in result.findings
    ]  # fmt: skip
    if rows:
        _print.show(_print.table(["row", "guardrail", "action", "kind", "role", "place", "score", "reason"], rows))
    if len(results) == 1:
        for text in results[0].texts if any(found.action == "mask" for found in results[0].findings) else ():
            _print.out().print(f"the model sees: {text}", markup=False)
        _print.out().print(f"action: {results[0].action}", markup=False)
        return
    counted = Counter(result.action for result in results)
    said = ", ".join(f"{action} {count}" for action, count in counted.most_common())
    _print.out().print(f"{len(results)} rows: {said}", markup=False)


def list_(as_json: _Json = False) -> None:
    """List the guardrails: where each can look, and what can be done about what it finds (the first is the default)."""
    from luthier.cli import _print
    from luthier.core import catalog

    found = []
    for name in catalog.names("guardrails"):
        entry = catalog.load("guardrails", name)
        found.append({
            "name": name, "on": list(entry.optional("ON") or ("input", "output")),
            "actions": list(entry.optional("ACTIONS") or ("block", "flag", "hand_over")),
            "about": catalog.summary("guardrails", name),
        })  # fmt: skip
    if as_json:
        _print.show_json(found)
        return
    rows = [
        (f"[bold]{each['name']}[/]", ", ".join(each["on"]), ", ".join(each["actions"]), each["about"]) for each in found
    ]
    _print.show(_print.table(["name", "on", "actions", "about"], rows))


def handovers(
    *,
    tenant: Annotated[str | None, typer.Option(metavar="NAME", help="Only this tenant's.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many, the newest first.")] = 50,
    as_json: _Json = False,
) -> None:
    """List the requests that guardrails handed over to a person, from the audit log; `luthier traces show` has the rest."""
    from dataclasses import asdict

    from luthier.cli import _print
    from luthier.gateway.guard.handover import handed_over
    from luthier.store.database import open_store

    found = handed_over(open_store(), tenant=tenant, most=limit)
    if as_json:
        _print.show_json([asdict(each) for each in found])
        return
    rows = [
        (
            each.at,
            each.tenant,
            str(each.detail.get("guardrail", "")),
            "; ".join(each.detail.get("reasons", ())),
            each.target,
        )
        for each in found
    ]
    _print.show(_print.table(["at", "tenant", "guardrail", "reasons", "trace"], rows))
