"""What people say of answers: checked against the trace and the labels of the model that gave it, then stored."""

from __future__ import annotations

from luthier.core.errors import InputError, NotFoundError, did_you_mean
from luthier.core.trace import Feedback
from luthier.store.database import Store
from luthier.store.feedback import record_feedback
from luthier.store.models import find
from luthier.store.traces import find_trace
from luthier.strategies._labels import labels_of

LONGEST = 65_536


def give_feedback(
    store: Store,
    trace_id: str,
    *,
    rating: int | None = None,
    label: str | None = None,
    corrected: str | None = None,
    comment: str = "",
    labels: tuple[str, ...] | None = None,
) -> Feedback:
    """Record a rating (-1 or 1), the right label, a corrected answer or a comment on a trace; at least one of them.

    ``labels`` is the closed answer set of the trace's model, None to look it up. Raises NotFoundError for an unknown trace,
    InputError for a label that the model cannot give and for what ``record_feedback`` refuses.
    """
    trace = find_trace(store, trace_id)
    if labels is None:
        labels = _labels(store, trace.model)
    if label is not None and labels and label not in labels:
        raise InputError(
            f"label must be one of the labels of {trace.model}: {', '.join(labels)}; got {label!r}. "
            f"{did_you_mean(label, labels) if len(labels) > 12 else ''}".rstrip()
        )
    for name, text in (("label", label), ("corrected", corrected), ("comment", comment)):
        if text is not None and len(text) > LONGEST:
            raise InputError(f"{name} must be at most {LONGEST:,} characters; got {len(text):,}")
        if text is not None and name != "comment" and not text.strip():
            raise InputError(f"{name} must not be empty; leave it out instead")
    return record_feedback(store, trace_id, rating=rating, label=label, corrected=corrected, comment=comment)


def _labels(store: Store, model: str) -> tuple[str, ...]:
    """The labels of a stored model; a fake one carries them in its name."""
    try:
        return labels_of(store, find(store, model))
    except NotFoundError:
        return ()


def feedback_body(given: Feedback) -> dict[str, object]:
    """The response to POST /v1/feedback."""
    return {
        "object": "feedback",
        "id": given.id,
        "trace_id": given.trace_id,
        "created_at": given.created_at,
        "rating": given.rating,
        "label": given.label,
        "corrected": given.corrected,
        "comment": given.comment,
    }
