"""Knowledge bases and their documents; the access labels of keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "knowledge_bases",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("embedder", sa.String(256), nullable=False),
        sa.Column("embedder_digest", sa.String(64), nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("chunker", sa.JSON, nullable=False),
        sa.Column("index", sa.JSON, nullable=False),
        sa.Column("retrieval", sa.JSON, nullable=False),
        sa.Column("answer", sa.JSON, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("meta", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_knowledge_bases"),
    )
    op.create_table(
        "knowledge_documents",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("base", sa.String(64), nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("media_type", sa.String(128), nullable=False),
        sa.Column("language", sa.String(8), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("pages", sa.Integer),
        sa.Column("chunks", sa.Integer, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("modified_ns", sa.BigInteger, nullable=False),
        sa.Column("labels", sa.JSON, nullable=False),
        sa.Column("warnings", sa.JSON, nullable=False),
        sa.Column("added_at", sa.String(32), nullable=False),
        sa.Column("meta", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_knowledge_documents"),
        sa.ForeignKeyConstraint(["base"], ["knowledge_bases.name"], name="fk_knowledge_documents_base"),
    )
    op.create_index("ix_knowledge_documents_source", "knowledge_documents", ["base", "source"], unique=True)
    op.add_column("api_keys", sa.Column("labels", sa.JSON, nullable=False, server_default="[]"))


def downgrade() -> None:
    """Drop them."""
    op.drop_column("api_keys", "labels")
    op.drop_table("knowledge_documents")
    op.drop_table("knowledge_bases")
