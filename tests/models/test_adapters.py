"""PEFT adapters of several kinds on one base, and LoRA whose base lost its beginning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.catalog import load
from luthier.core.engine import ScoreRequest
from luthier.core.errors import MismatchError, UnsupportedError
from luthier.core.message import user
from luthier.core.model import ModelRecord
from luthier.engines._open import open_engine, open_many
from luthier.models.adapters import inner_of, peft_models
from luthier.models.attach import attach, detach, save_trained, select
from luthier.models.export import export
from luthier.models.load import LoadedModel, load_model
from luthier.models.merge import merge
from luthier.store.artifacts import put
from luthier.store.database import open_store
from luthier.store.models import register

IDS = torch.tensor([[5, 9, 30, 7], [8, 6, 40, 11]])
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {},
    "adalora": {},
    "loha": {},
    "lokr": {},
    "vera": {"rank": 8},
    "oft": {"block_size": 8},
    "ia3": {},
    "lora_and_embeddings": {},
    "peft": {"type": "HRA"},
}


def answer(model: LoadedModel) -> torch.Tensor:
    inner = inner_of(model).eval()
    with torch.no_grad():
        out = inner(input_ids=IDS)
    return out.logits if model.architecture == "decoder" else out.last_hidden_state


def tuned(base: str, method: str, folder: Path, options: dict[str, Any]) -> torch.Tensor:
    """Save a random adapter of ``method`` for ``base``; what it answers."""
    model = load_model(open_store(), base, dtype="fp32", device="cpu")
    model.module.requires_grad_(False)
    entry = load("methods", method)
    torch.manual_seed(0)
    model = entry(model, entry.configure(options))
    for parameter in model.module.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    save_trained(model, folder, {"saves": "adapter"})
    return answer(model)


TRANSPOSED = {"lora", "dora", "adalora", "vera", "ia3", "lora_and_embeddings"}
"""Those that PEFT can put into GPT-2's transposed layers."""


@pytest.mark.parametrize("base", ["tiny_decoder", "tiny_encoder", "tiny_gpt2"])
def test_adapters_of_every_kind_share_the_tensors_of_one_base(
    base: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    name = request.getfixturevalue(base)
    methods = [method for method in KINDS if base != "tiny_gpt2" or method in TRANSPOSED]
    expected = {method: tuned(name, method, tmp_path / method, KINDS[method]) for method in methods}
    model = load_model(open_store(), name, dtype="fp32", device="cpu")
    bare = answer(model)
    own = {id(p) for p in inner_of(model).parameters()}
    for method in methods:
        attach(model, ModelRecord(method, "adapter", model.architecture, ""), method, folder=tmp_path / method)
        torch.testing.assert_close(answer(model), bare, rtol=0, atol=0)
    assert len(peft_models(model)) == len(methods) - 1  # DoRA is a LoRA
    for each in peft_models(model).values():
        assert own <= {id(p) for p in each.parameters()}
    for method in [*methods, None, *reversed(methods)]:
        select(model, method)
        near = {"rtol": 0.0, "atol": 0.0} if method is None else {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(answer(model), bare if method is None else expected[method], **near)
    for number, method in enumerate(methods):
        detach(model, method)
        left = methods[number + 1 :]
        if left:
            select(model, left[-1])
            torch.testing.assert_close(answer(model), expected[left[-1]], rtol=1e-5, atol=1e-5)
        select(model, None)
        torch.testing.assert_close(answer(model), bare, rtol=0, atol=0)
    assert not hasattr(inner_of(model), "peft_config")
    assert {id(p) for p in inner_of(model).parameters()} == own


@pytest.mark.parametrize("method", sorted(set(KINDS) - TRANSPOSED))
def test_transposed_layers_are_refused_where_peft_has_none(method: str, tiny_gpt2: str) -> None:
    model = load_model(open_store(), tiny_gpt2, dtype="fp32", device="cpu")
    entry = load("methods", method)
    with pytest.raises(UnsupportedError, match=r"cannot go into tiny-gpt2: .*\n.*method=lora"):
        entry(model, entry.configure(KINDS[method]))


@pytest.mark.parametrize("method", sorted(KINDS))
@pytest.mark.parametrize("base", ["tiny_decoder", "tiny_encoder", "tiny_gpt2"])
def test_each_is_merged(base: str, method: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if base == "tiny_gpt2" and method not in TRANSPOSED:
        return
    name = request.getfixturevalue(base)
    expected = tuned(name, method, tmp_path, KINDS[method])
    model = load_model(open_store(), name, dtype="fp32", device="cpu")
    attach(model, ModelRecord("a", "adapter", model.architecture, ""), "a", folder=tmp_path)
    select(model, "a")
    torch.testing.assert_close(answer(merge(model)), expected, rtol=1e-5, atol=1e-5)


def test_engines_and_exports(tiny_decoder: str, tmp_path: Path) -> None:
    """One base in memory answers as adapters of several kinds in turn; only a plain LoRA becomes a LoRA file."""
    store, kinds = open_store(), {**KINDS, "pissa": {"init": "pissa_fast", "rank": 4}}
    for name, options in kinds.items():
        method = "lora" if name == "pissa" else name
        tuned(tiny_decoder, method, tmp_path / name, options)
        digest, size = put(store, tmp_path / name)
        register(store, ModelRecord(name, "adapter", "decoder", digest, size, base=tiny_decoder))
    request = [ScoreRequest(user("refund number 3"), ("billing", "delivery"))]
    options = {"dtype": "fp32", "device": "cpu"}
    many = open_many(store, [*kinds, tiny_decoder], "torch", options)
    found = {name: [each.logprob for each in engine.score(request)[0]] for name, engine in many.items()}
    assert len({tuple(values) for values in found.values()}) == len(found)
    for name in reversed(list(kinds)):
        again = [each.logprob for each in many[name].score(request)[0]]
        assert again == pytest.approx(found[name], abs=1e-5)
        alone = open_engine(store, name, "torch", options)
        assert [each.logprob for each in alone.score(request)[0]] == pytest.approx(found[name], abs=1e-4)
        assert export(name, type="F32", store=store).meta["holds"] == ("lora" if name in ("lora", "pissa") else "model")


def test_the_selected_one_of_several_kinds_is_merged(tiny_decoder: str, tmp_path: Path) -> None:
    expected = {m: tuned(tiny_decoder, m, tmp_path / m, KINDS[m]) for m in ("lora", "loha", "lora_and_embeddings")}
    for method in expected:
        model = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
        for each in expected:
            attach(model, ModelRecord(each, "adapter", "decoder", ""), each, folder=tmp_path / each)
        select(model, method)
        merged = merge(model)
        torch.testing.assert_close(answer(merged), expected[method], rtol=1e-5, atol=1e-5)
        head, embeddings = merged.module.get_output_embeddings(), merged.module.get_input_embeddings()
        assert head.weight is embeddings.weight  # still one matrix
        assert merged.module.config.tie_word_embeddings


def test_a_kind_that_does_not_fit_leaves_the_others(tiny_decoder: str, tmp_path: Path) -> None:
    expected = tuned(tiny_decoder, "lora", tmp_path / "lora", {})
    tuned(tiny_decoder, "loha", tmp_path / "loha", {})
    path = tmp_path / "loha" / "adapter_config.json"
    path.write_text(path.read_text().replace('"r": 8', '"r": 7'))
    model = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
    attach(model, ModelRecord("lora", "adapter", "decoder", ""), "lora", folder=tmp_path / "lora")
    select(model, "lora")
    with pytest.raises(MismatchError, match="does not fit tiny-decoder"):
        attach(model, ModelRecord("loha", "adapter", "decoder", ""), "loha", folder=tmp_path / "loha")
    torch.testing.assert_close(answer(model), expected, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_merged_says_so(tiny_decoder: str, tmp_path: Path) -> None:
    tuned(tiny_decoder, "peft", tmp_path, {"type": "LILY", "options": {"r": 2}})
    model = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
    attach(model, ModelRecord("lily", "adapter", "decoder", ""), "lily", folder=tmp_path)
    select(model, "lily")
    with pytest.raises(UnsupportedError, match=r"type LILY cannot be merged .*\n.*engine torch"):
        merge(model)


@pytest.mark.parametrize("options", [{}, {"rslora": True}, {"ranks": {"down_proj": 3}, "alphas": {"q_proj": 5}}])
@pytest.mark.parametrize("init", ["pissa", "pissa_fast", "olora"])
def test_what_was_taken_out_of_the_base_is_given_back(
    init: str, options: dict[str, Any], tiny_decoder: str, tmp_path: Path
) -> None:
    """The file fits the base as it was pulled."""
    expected = tuned(tiny_decoder, "lora", tmp_path, {"init": init, "rank": 4, **options})
    model = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
    bare = answer(model)
    attach(model, ModelRecord("pissa", "adapter", "decoder", ""), "pissa", folder=tmp_path)
    torch.testing.assert_close(answer(model), bare, rtol=0, atol=0)
    select(model, "pissa")
    torch.testing.assert_close(answer(model), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(answer(merge(model)), expected, rtol=1e-4, atol=1e-4)
