"""Full fine-tuning: what is trained."""

from __future__ import annotations

from tests.methods.tiny import KINDS, whole

from luthier.methods.full import Config, build
from luthier.models.load import load_model
from luthier.store.database import open_store

COUNTS = {kind: whole(kind) for kind in KINDS}


def test_everything_is_trained(tiny_decoder: str) -> None:
    model = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
    model.module.requires_grad_(False)
    assert all(p.requires_grad for p in build(model, Config()).module.parameters())


def test_embeddings_can_stay(tiny_encoder: str) -> None:
    model = load_model(open_store(), tiny_encoder, dtype="fp32", device="cpu", labels=("a", "b"))
    module = build(model, Config(embeddings=False)).module
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    assert frozen == {"body.embeddings.word_embeddings.weight"}
