"""The prompt renderer of a stored model, without its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.core.errors import DataError, UnsupportedError
from luthier.core.model import ModelRecord

if TYPE_CHECKING:
    from luthier.data.render import Renderer
    from luthier.store.database import Store


def renderer_of(store: Store, model: str | ModelRecord) -> Renderer:
    """The renderer that training and the torch engine use for a stored decoder in Hugging Face layout.

    Raises NotFoundError for an unknown name, UnsupportedError for an encoder, DataError for damaged tokenizer files.
    """
    from transformers import AutoTokenizer

    from luthier.data.render import Renderer
    from luthier.store.artifacts import path_of
    from luthier.store.models import find

    record = find(store, model) if isinstance(model, str) else model
    if record.architecture != "decoder":
        raise UnsupportedError(f"{record.name} is an encoder: it has no chat template")
    folder = path_of(store, record.digest)
    try:
        return Renderer(AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: the tokenizer files cannot be read: {error}") from error
