"""Traces know whose they are and how they were answered: tenant, key, session, route, cache, details."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    op.add_column("traces", sa.Column("tenant", sa.String(128), nullable=False, server_default="local"))
    op.add_column("traces", sa.Column("key_id", sa.String(64), nullable=False, server_default=""))
    op.add_column("traces", sa.Column("session", sa.String(512), nullable=False, server_default=""))
    op.add_column("traces", sa.Column("route", sa.String(128), nullable=False, server_default=""))
    op.add_column("traces", sa.Column("cache", sa.String(16), nullable=False, server_default=""))
    op.add_column("traces", sa.Column("details", sa.JSON, nullable=False, server_default="{}"))
    op.create_index("ix_traces_tenant", "traces", ["tenant", "created_at"])
    op.create_index("ix_traces_session", "traces", ["session"])


def downgrade() -> None:
    """Drop them."""
    op.drop_index("ix_traces_session", "traces")
    op.drop_index("ix_traces_tenant", "traces")
    with op.batch_alter_table("traces") as table:
        for name in ("tenant", "key_id", "session", "route", "cache", "details"):
            table.drop_column(name)
