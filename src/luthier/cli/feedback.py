"""``luthier feedback``: say what an answer was worth; find what people did with answers; list both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from luthier.core.trace import Feedback

SAID = ("rating", "label", "corrected", "comment", "over", "event")
_GIVE = "give"


class _Group(TyperGroup):
    """A group whose first command needs no name: ``luthier feedback TRACE --rating 1``."""

    unnamed = _GIVE

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [self.unnamed, *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


def register(app: typer.Typer) -> None:
    """Add the commands."""
    made = typer.Typer(
        name="feedback",
        cls=_Group,
        help="Say what an answer was worth: luthier feedback TRACE --rating 1. Or find and list what people said and did.",
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.command(_GIVE)(give_command)
    made.command("infer")(infer_command)
    made.command("list")(list_command)
    app.add_typer(made)


def give_command(
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="The answer's trace id (luthier traces).")],
    *,
    rating: Annotated[int | None, typer.Option(help="1 for a good answer, -1 for a bad one.")] = None,
    label: Annotated[str | None, typer.Option(help="The label that would have been right.")] = None,
    corrected: Annotated[str | None, typer.Option(help="The answer that would have been right.")] = None,
    comment: Annotated[str, typer.Option(help="Anything else.")] = "",
    over: Annotated[
        str, typer.Option(metavar="TRACE", help="Another answer to the same question, which was worse.")
    ] = "",
    event: Annotated[
        str, typer.Option(help="Instead: what was done with the answer (copied, accepted, dismissed, ...).")
    ] = "",
    user: Annotated[str, typer.Option(help="Who says it.")] = "",
) -> None:
    """Record a rating, the right label, a corrected answer, a comment, or that it beats another, on an answer that was served.

    `luthier data from-feedback` makes training examples of it.
    """
    from luthier.cli._print import out
    from luthier.gateway.api.feedback import feedback_body, give_feedback
    from luthier.store.database import open_store, to_json

    given = give_feedback(
        open_store(), trace, rating=rating, label=label, corrected=corrected, comment=comment, over=over, event=event,
        source="cli", said_by=user,
    )  # fmt: skip
    said = [
        f"{key}={to_json(value)}"
        for key, value in feedback_body(given).items()
        if key in SAID and value not in (None, "")
    ]
    out().print(f"{given.id} on {given.trace_id}: {', '.join(said)}", markup=False)


def infer_command(
    *,
    model: Annotated[str | None, typer.Option(help="Only answers of this model.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    since: Annotated[str | None, typer.Option(help="From then on: 2h, 7d ago, a date, or an ISO time.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find what people did with answers: asked again, put it otherwise, left in the middle, went on with one of two.

    It is recorded as implicit feedback, apart from what people said. Running it again adds only what is new.
    """
    from luthier.cli import _print
    from luthier.data.implicit import infer_feedback
    from luthier.store.database import open_store
    from luthier.store.trace_query import TraceFilter

    found = infer_feedback(open_store(), TraceFilter(model=model, tenant=tenant, since=since))
    if as_json:
        _print.show_json(found)
    elif not any(found.values()):
        _print.say("Nothing new. Sessions are needed: clients send metadata.session_id or user.")
    else:
        rows = [(event, f"{count:,}") for event, count in sorted(found.items()) if count]
        _print.show(_print.table(("event", "new"), rows, right=("new",)))


def list_command(
    *,
    model: Annotated[str | None, typer.Option(help="Only on answers of this model.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    implicit: Annotated[
        bool, typer.Option("--implicit", help="What people did, too, not only what they said.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List feedback, the newest first."""
    from dataclasses import asdict

    from luthier.cli import _print
    from luthier.store.database import open_store
    from luthier.store.feedback import list_feedback

    kinds = ("explicit", "implicit") if implicit else ("explicit",)
    found = list_feedback(open_store(), model, kinds=kinds, tenant=tenant)[::-1][:limit]  # type: ignore[arg-type]
    if as_json:
        _print.show_json([asdict(said) | {"model": trace.model} for trace, said in found])
    elif found:
        _print.show(_table([(trace.model, said) for trace, said in found]))
    else:
        _print.say("No feedback yet; `luthier feedback TRACE --rating 1` gives some.")


def _table(found: list[tuple[str, Feedback]]) -> Any:
    from rich.markup import escape

    from luthier.cli._print import table
    from luthier.cli._trace_page import statement

    rows = [
        (
            said.id,
            said.created_at[:19].replace("T", " "),
            escape(model),
            said.trace_id,
            escape(statement(said, said.trace_id)),
        )
        for model, said in found
    ]
    return table(("feedback", "time (UTC)", "model", "trace", "said"), rows)
