"""Feedback says whether somebody said it or it was inferred, what happened, from where it came, and over which answer one was preferred."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

COLUMNS = (("kind", 16, "explicit"), ("event", 32, ""), ("source", 16, ""), ("over", 64, ""), ("tenant", 128, "local"),
           ("key_id", 64, ""), ("said_by", 512, ""))  # fmt: skip


def upgrade() -> None:
    """Add the columns."""
    for name, length, default in COLUMNS:
        op.add_column("feedback", sa.Column(name, sa.String(length), nullable=False, server_default=default))
    op.create_index("ix_feedback_kind", "feedback", ["kind", "created_at"])


def downgrade() -> None:
    """Drop them."""
    op.drop_index("ix_feedback_kind", "feedback")
    with op.batch_alter_table("feedback") as table:
        for name, _, _ in COLUMNS:
            table.drop_column(name)
