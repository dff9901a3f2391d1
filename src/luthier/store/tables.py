"""The tables, as they are after the last migration (a test compares the two)."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
    }
)

models = Table(
    "models",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("architecture", String(16), nullable=False),
    Column("digest", String(64), nullable=False, index=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("licence", String(128), nullable=False),
    Column("base", String(128)),
    Column("run_id", String(64)),
    Column("created_at", String(32), nullable=False),
    Column("meta", JSON, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("status", String(16), nullable=False),
    Column("name", String(256), nullable=False, index=True),
    Column("key", String(128), nullable=False, index=True),
    Column("created_at", String(32), nullable=False),
    Column("finished_at", String(32)),
    Column("summary", JSON, nullable=False),
)

edges = Table(
    "edges",
    metadata,
    Column("source_kind", String(16), primary_key=True),
    Column("source_id", String(128), primary_key=True),
    Column("relation", String(64), primary_key=True),
    Column("target_kind", String(16), primary_key=True),
    Column("target_id", String(128), primary_key=True),
    Column("source_label", String(256), nullable=False),
    Column("target_label", String(256), nullable=False),
    Column("created_at", String(32), nullable=False),
    Index("ix_edges_target", "target_kind", "target_id"),
)

traces = Table(
    "traces",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("created_at", String(32), nullable=False, index=True),
    Column("model", String(128), nullable=False),
    Column("operation", String(16), nullable=False),
    Column("messages", JSON, nullable=False),
    Column("answer", Text, nullable=False),
    Column("parameters", JSON, nullable=False),
    Column("model_digest", String(64), nullable=False),
    Column("base_digest", String(64), nullable=False),
    Column("template_digest", String(64), nullable=False),
    Column("prompt_digest", String(64), nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("first_token_s", Float),
    Column("latency_s", Float, nullable=False),
    Column("cost", Float, nullable=False),
    Column("finish_reason", String(32), nullable=False),
    Column("error", Text, nullable=False),
    Column("tenant", String(128), nullable=False, server_default="local"),
    Column("key_id", String(64), nullable=False, server_default=""),
    Column("session", String(512), nullable=False, server_default=""),
    Column("route", String(128), nullable=False, server_default=""),
    Column("cache", String(16), nullable=False, server_default=""),
    Column("details", JSON, nullable=False, server_default="{}"),
    Index("ix_traces_model", "model", "created_at"),
    Index("ix_traces_tenant", "tenant", "created_at"),
    Index("ix_traces_session", "session"),
)

feedback = Table(
    "feedback",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("trace_id", String(64), ForeignKey("traces.id"), nullable=False, index=True),
    Column("created_at", String(32), nullable=False),
    Column("rating", Integer),
    Column("label", Text),
    Column("corrected", Text),
    Column("comment", Text, nullable=False),
    Column("kind", String(16), nullable=False, server_default="explicit"),
    Column("event", String(32), nullable=False, server_default=""),
    Column("source", String(16), nullable=False, server_default=""),
    Column("over", String(64), nullable=False, server_default=""),
    Column("tenant", String(128), nullable=False, server_default="local"),
    Column("key_id", String(64), nullable=False, server_default=""),
    Column("said_by", String(512), nullable=False, server_default=""),
    Index("ix_feedback_kind", "kind", "created_at"),
)

battles = Table(
    "battles",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("key", String(64), nullable=False),
    Column("arena", String(128), nullable=False),
    Column("pair", String(64), nullable=False, index=True),
    Column("created_at", String(32), nullable=False),
    Column("prompt", Text, nullable=False),
    Column("model_a", String(256), nullable=False),
    Column("model_b", String(256), nullable=False),
    Column("digest_a", String(64), nullable=False),
    Column("digest_b", String(64), nullable=False),
    Column("answer_a", Text, nullable=False),
    Column("answer_b", Text, nullable=False),
    Column("winner", String(8), nullable=False),
    Column("source", String(16), nullable=False),
    Column("voter", String(256), nullable=False),
    Column("shown", String(2), nullable=False),
    Column("detail", JSON, nullable=False),
    Index("ix_battles_key", "key", unique=True),
    Index("ix_battles_arena", "arena", "created_at"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(128), nullable=False, index=True),
    Column("name", String(128), nullable=False),
    Column("hint", String(16), nullable=False),
    Column("digest", LargeBinary(32), nullable=False, unique=True),
    Column("scopes", JSON, nullable=False),
    Column("models", JSON, nullable=False),
    Column("labels", JSON, nullable=False, server_default="[]"),
    Column("limits", JSON, nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("created_by", String(128), nullable=False),
    Column("expires_at", String(32)),
    Column("revoked_at", String(32)),
    Column("last_used_at", String(32)),
    Column("old_digest", LargeBinary(32)),
    Column("old_until", String(32)),
)

tenants = Table(
    "tenants",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("limits", JSON, nullable=False),
    Column("created_at", String(32), nullable=False),
)

usage = Table(
    "usage",
    metadata,
    Column("day", String(10), primary_key=True),
    Column("tenant", String(128), primary_key=True),
    Column("key_id", String(64), primary_key=True),
    Column("model", String(128), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("cache_hits", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cost", Float, nullable=False),
    Index("ix_usage_key", "key_id", "day"),
    Index("ix_usage_tenant", "tenant", "day"),
)

rates = Table(  # what each serving process has let through, for the others' token buckets
    "rates",
    metadata,
    Column("process", String(64), primary_key=True),
    Column("subject", String(160), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("at_s", Float, nullable=False),
)

versions = Table(  # a number that grows with each change of a thing that servers hold in memory
    "versions",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("number", BigInteger, nullable=False),
)

audit_log = Table(  # triggers refuse to change or remove a row
    "audit_log",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("at", String(32), nullable=False),
    Column("actor", String(128), nullable=False),
    Column("tenant", String(128), nullable=False),
    Column("address", String(64), nullable=False),
    Column("action", String(64), nullable=False),
    Column("target", String(256), nullable=False),
    Column("detail", JSON, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
)

route_states = Table(  # the verdict on a canary; ``digest`` says of which weights
    "route_states",
    metadata,
    Column("route", String(128), primary_key=True),
    Column("digest", String(64), primary_key=True),
    Column("state", JSON, nullable=False),
    Column("updated_at", String(32), nullable=False),
)

files = Table(  # what tenants uploaded, and what batches wrote for them; the bytes are artifacts
    "files",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("key_id", String(64), nullable=False),
    Column("name", String(256), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("digest", String(64), nullable=False, index=True),
    Column("created_at", String(32), nullable=False),
    Column("expires_at", String(32)),
    Index("ix_files_tenant", "tenant", "created_at"),
)

batches = Table(
    "batches",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("key_id", String(64), nullable=False),
    Column("endpoint", String(64), nullable=False),
    Column("input_file", String(64), nullable=False),
    Column("window", String(16), nullable=False),
    Column("status", String(16), nullable=False, index=True),
    Column("created_at", String(32), nullable=False),
    Column("expires_at", String(32), nullable=False),
    Column("times", JSON, nullable=False),
    Column("total", Integer, nullable=False),
    Column("completed", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("output_file", String(64)),
    Column("error_file", String(64)),
    Column("errors", JSON, nullable=False),
    Column("about", JSON, nullable=False),
    Column("worker", String(64)),
    Column("lease_until_s", Float),
    Index("ix_batches_tenant", "tenant", "created_at"),
)

knowledge_bases = Table(
    "knowledge_bases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("embedder", String(256), nullable=False),
    Column("embedder_digest", String(64), nullable=False),
    Column("width", Integer, nullable=False),
    Column("chunker", JSON, nullable=False),
    Column("index", JSON, nullable=False),
    Column("retrieval", JSON, nullable=False),
    Column("answer", JSON, nullable=False),
    Column("description", Text, nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("version", Integer, nullable=False),
    Column("meta", JSON, nullable=False),
)

knowledge_documents = Table(
    "knowledge_documents",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("base", String(64), ForeignKey("knowledge_bases.name"), nullable=False),
    Column("source", Text, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("title", Text, nullable=False),
    Column("media_type", String(128), nullable=False),
    Column("language", String(8), nullable=False),
    Column("status", String(16), nullable=False),
    Column("error", Text, nullable=False),
    Column("pages", Integer),
    Column("chunks", Integer, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("modified_ns", BigInteger, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("warnings", JSON, nullable=False),
    Column("added_at", String(32), nullable=False),
    Column("meta", JSON, nullable=False),
    Index("ix_knowledge_documents_source", "base", "source", unique=True),
)
