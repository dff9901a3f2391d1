"""The section ``batch`` of the gateway's configuration."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class BatchConfig(BaseModel):
    """``rows`` lines go to the engine together (those that agree in model and parameters), from ``concurrent`` batches at once. A file may have ``max_file_mb``
    and ``max_lines``, a tenant ``max_stored_mb`` of files and ``max_open`` batches; files end after ``keep_days``. ``enabled: false`` leaves batches to other
    servers on the store."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    enabled: bool = True
    rows: int = Field(default=32, ge=1, le=1024)
    concurrent: int = Field(default=1, ge=1, le=64)
    max_file_mb: float = Field(default=200.0, gt=0, le=2048)
    max_lines: int = Field(default=50_000, ge=1, le=1_000_000)
    max_stored_mb: float = Field(default=2_000.0, gt=0)
    max_open: int = Field(default=20, ge=1)
    keep_days: float = Field(default=30.0, gt=0)
