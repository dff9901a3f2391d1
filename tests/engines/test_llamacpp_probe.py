from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from luthier.core.message import user
from luthier.engines._llamacpp_probe import LlamaProbe
from luthier.engines._open import open_engine
from luthier.models.load import load_model
from luthier.models.token_scores import token_scores
from luthier.store.database import open_store


def test_single_tokens_are_those_of_torch(tiny_decoder: str) -> None:
    store = open_store()
    options = {"type": "F32", "cache_type": "f32", "context_length": 256, "parallel": 1, "threads": 1}
    engine: Any = open_engine(store, tiny_decoder, "llamacpp", options)
    loaded = load_model(store, tiny_decoder, dtype="fp32", device="cpu")
    assert loaded.renderer is not None
    prompt = loaded.renderer.prompt_ids(user("Where is my parcel?"))
    ids = loaded.renderer.continuation_ids("On its way 我", ends_turn=True)
    (wanted,) = token_scores(loaded.module, [(prompt, ids)], loaded.device)
    try:
        probe = LlamaProbe(engine._server, engine._lora)
        assert probe.tokenize(loaded.renderer.text(user("Where is my parcel?"))) == prompt
        found = probe.token_scores(prompt, ids)
        assert probe.ends_answer(prompt[:1], [0, 1, 2, 70]) == {0, 2}, "<|endoftext|> ends answers by its name"
    finally:
        engine.close()
    said = [(i, value, best) for i, (value, best) in enumerate(found) if value is not None]
    assert len(said) >= len(ids) - 3, "only parts of characters are not reported"
    assert {best for value, best in found if value is None} <= {-1}
    for i, value, best in said:
        assert value == pytest.approx(wanted.log_probs[i], abs=1e-3)
        assert best == wanted.likeliest[i] or np.isclose(wanted.log_probs[i], value, atol=1e-3)
