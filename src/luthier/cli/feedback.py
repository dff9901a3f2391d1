"""``luthier feedback``: say what an answer was worth."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("feedback")(feedback)


def feedback(
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="The answer's trace id (luthier traces).")],
    *,
    rating: Annotated[int | None, typer.Option(help="1 for a good answer, -1 for a bad one.")] = None,
    label: Annotated[str | None, typer.Option(help="The label that would have been right.")] = None,
    corrected: Annotated[str | None, typer.Option(help="The answer that would have been right.")] = None,
    comment: Annotated[str, typer.Option(help="Anything else.")] = "",
) -> None:
    """Record a rating, the right label, a corrected answer or a comment on an answer that was served.

    `luthier data from-feedback` makes training examples of it.
    """
    from luthier.cli._print import out
    from luthier.gateway.feedback import feedback_body, give_feedback
    from luthier.store.database import open_store, to_json

    given = give_feedback(open_store(), trace, rating=rating, label=label, corrected=corrected, comment=comment)
    said = [
        f"{key}={to_json(value)}"
        for key, value in feedback_body(given).items()
        if key in SAID and value not in (None, "")
    ]
    out().print(f"{given.id} on {given.trace_id}: {', '.join(said)}", markup=False)


SAID = ("rating", "label", "corrected", "comment")
