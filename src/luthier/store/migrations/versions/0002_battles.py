"""Battles: two models' answers to one prompt, and who was preferred."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "battles",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("arena", sa.String(128), nullable=False),
        sa.Column("pair", sa.String(64), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("model_a", sa.String(256), nullable=False),
        sa.Column("model_b", sa.String(256), nullable=False),
        sa.Column("digest_a", sa.String(64), nullable=False),
        sa.Column("digest_b", sa.String(64), nullable=False),
        sa.Column("answer_a", sa.Text, nullable=False),
        sa.Column("answer_b", sa.Text, nullable=False),
        sa.Column("winner", sa.String(8), nullable=False),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("voter", sa.String(256), nullable=False),
        sa.Column("shown", sa.String(2), nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_battles"),
    )
    op.create_index("ix_battles_key", "battles", ["key"], unique=True)
    op.create_index("ix_battles_arena", "battles", ["arena", "created_at"])
    op.create_index("ix_battles_pair", "battles", ["pair"])


def downgrade() -> None:
    """Drop it."""
    op.drop_table("battles")
