"""Run by alembic: hands it our connection, whose transaction the caller commits."""

from __future__ import annotations

from alembic import context

from luthier.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    render_as_batch=True,  # SQLite cannot alter columns in place
)
context.run_migrations()
