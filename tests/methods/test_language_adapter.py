"""MAD-X against the paper's equations: language adapters with their inverse, tasks on top of them, another language under a task."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.methods.made import adapter
from tests.methods.tiny import FIXTURES, HEAD, LAYERS, D
from torch import Tensor, nn

from luthier.core.errors import ConflictError, MismatchError, NotFoundError, UnsupportedError
from luthier.methods import language_adapter, pfeiffer_adapter
from luthier.models import parts, rows
from luthier.models.adapters import inner_of
from luthier.models.attach import attach, detach, select
from luthier.models.load import LoadedModel, load_model
from luthier.models.merge import merge
from luthier.models.tuners._composed import Coupling
from luthier.models.weights import read_tensors
from luthier.store.artifacts import path_of
from luthier.store.database import open_store
from luthier.store.models import find

_K = D // 2
_BOTTLENECKS = LAYERS * (2 * D * _K + _K + D)
_H = D // 2  # half a token; F and G have half of that between
_COUPLING = 2 * (_H * (_H // 2) + _H // 2 + (_H // 2) * _H + _H)
COUNTS = {kind: _BOTTLENECKS + _COUPLING + HEAD[kind] for kind in ("llama", "gpt2", "bert")}
IDS = torch.tensor([[5, 9, 30, 7, 12], [8, 6, 40, 11, 3]])


def loaded(name: str) -> LoadedModel:
    torch.manual_seed(0)
    return load_model(open_store(), name, dtype="fp32", device="cpu")


def out(model: LoadedModel) -> Tensor:
    with torch.no_grad():
        return inner_of(model).eval()(IDS)[0]


def file_of(name: str) -> dict[str, Tensor]:
    store = open_store()
    return read_tensors(path_of(store, find(store, name).digest) / "adapter_model.safetensors")


def network(x: Tensor, w: dict[str, Tensor], where: str) -> Tensor:
    """U relu(D x + b) + b"""
    units = (x @ w[f"{where}.down.weight"].T + w[f"{where}.down.bias"]).relu()
    return units @ w[f"{where}.up.weight"].T + w[f"{where}.up.bias"]


def couple(x: Tensor, w: dict[str, Tensor], where: str) -> Tensor:
    """Equations 3 and 4 of the paper, halves of a token."""

    def f(z: Tensor, key: str) -> Tensor:
        units = (z @ w[f"{where}.{key}.0.weight"].T + w[f"{where}.{key}.0.bias"]).relu()
        return units @ w[f"{where}.{key}.2.weight"].T + w[f"{where}.{key}.2.bias"]

    first, second = x[..., :_H], x[..., _H:]
    first = first + f(second, "f")
    return torch.cat([first, second + f(first, "g")], -1)


def test_a_coupling_is_inverted() -> None:
    for width in (8, 9):
        coupling = Coupling(width, 2.0)
        x = torch.randn(3, 5, width)
        assert torch.equal(coupling(x), x), "it starts as the identity"
        for parameter in coupling.parameters():
            nn.init.normal_(parameter)
        assert not torch.allclose(coupling(x), x)
        torch.testing.assert_close(coupling.inverse(coupling(x)), x, rtol=1e-4, atol=1e-5)
        assert sum(p.numel() for p in coupling.parameters()) == Coupling.count(width, 2.0)


def test_an_encoders_language_adapter(tiny_encoder: str) -> None:
    """BERT by hand: embeddings through the coupling, and LA = U relu(D h) + r after each block, r before and h after its norm."""
    bare = loaded(tiny_encoder)
    adapter(open_store(), bare.base, "english", "language_adapter")
    w, p = file_of("english"), "base_model.model"
    body = bare.module.body
    with torch.no_grad():
        x = couple(body.embeddings(IDS), w, f"{p}.embeddings.bottleneck_couplings")
        for number, block in enumerate(body.encoder.layer):
            attended = block.attention(x)[0]
            r = block.output.dense(block.intermediate(attended)) + attended
            norm = block.output.LayerNorm
            where = f"{p}.encoder.layer.{number}.output.LayerNorm.bottleneck_adapters"
            x = norm(network(norm(r), w, where) + r)
    model = load_model(open_store(), "english", dtype="fp32", device="cpu")
    torch.testing.assert_close(out(model), x, rtol=1e-4, atol=1e-5)


def test_a_decoders_language_adapter_has_the_inverse_before_a_tied_head(tiny_decoder: str) -> None:
    """Llama by hand: the coupling after the embeddings, its inverse after the last norm, A(f + x) added to the residual stream."""
    bare = loaded(tiny_decoder)
    adapter(open_store(), bare.base, "english", "language_adapter")
    w, p = file_of("english"), "base_model.model"
    body = bare.module.model

    def block(number: int, module: Any, args: Any, result: Tensor) -> Tensor:
        return result + network(result, w, f"{p}.model.layers.{number}.mlp.down_proj.bottleneck_adapters")

    for number, layer in enumerate(body.layers):
        layer.register_forward_hook(lambda m, a, r, number=number: block(number, m, a, r))
    body.embed_tokens.register_forward_hook(
        lambda m, a, r: couple(r, w, f"{p}.model.embed_tokens.bottleneck_couplings")
    )
    coupling = Coupling(D, 2.0)
    inside = f"{p}.model.embed_tokens.bottleneck_couplings."
    coupling.load_state_dict({k.removeprefix(inside): v for k, v in w.items() if k.startswith(inside)})
    body.norm.register_forward_hook(lambda m, a, r: coupling.inverse(r))
    model = load_model(open_store(), "english", dtype="fp32", device="cpu")
    torch.testing.assert_close(out(model), out(bare), rtol=1e-4, atol=1e-5)


def test_a_head_of_its_own_needs_no_inverse(tiny_decoder: str) -> None:
    model = loaded(tiny_decoder)
    assert embedding_ends(model)["inverse"] == "model.norm"
    model.module.lm_head.weight = nn.Parameter(model.module.lm_head.weight.detach().clone())
    assert embedding_ends(model) == {"embeddings": "model.embed_tokens", "inverse": ""}


def embedding_ends(model: LoadedModel) -> dict[str, str]:
    from luthier.methods._stack import embedding_ends

    return embedding_ends(inner_of(model))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_a_task_on_a_language(kind: str, request: pytest.FixtureRequest) -> None:
    """TA = U_T relu(D_T LA) + r with LA of the frozen language adapter: outputs, and gradients of what is trained only."""
    base = loaded(request.getfixturevalue(FIXTURES[kind]))
    adapter(open_store(), base.base, "english", "language_adapter")
    before = out(base)
    model = pfeiffer_adapter.build(base, pfeiffer_adapter.Config(on="english", reduction=4))
    trained = {n: p for n, p in inner_of(model).named_parameters() if p.requires_grad}
    assert all("bottleneck_adapters.default.own" in name for name in trained)
    assert sum(p.numel() for p in trained.values()) == LAYERS * (2 * D * D // 4 + D // 4 + D)
    start = out(model)
    assert not torch.allclose(start, before), "the embeddings' coupling is the language's from the start"
    with torch.no_grad():
        for parameter in trained.values():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    language = file_of("english")
    own = {n.replace(".default.own", ""): p for n, p in trained.items()}
    seen: list[tuple[str, Tensor, Tensor, Tensor]] = []
    for key, module in inner_of(model).named_modules():
        if type(module).__name__ == "Stacked":
            where = key.removesuffix(".default")
            module.register_forward_hook(lambda m, a, o, where=where: seen.append((where, a[0], a[1], o)))
    inner_of(model).eval()(IDS)
    assert len(seen) == LAYERS
    for where, h, onto, result in seen:
        r = onto if kind == "bert" else h  # in models that normalise first the stream itself is read
        la = network(h, language, where) + r
        # what leaves is TA without the r that the block itself adds later
        expected = network(la, own, where) + onto
        torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-4)
    where, h, onto, result = seen[0]
    mine = [p for n, p in own.items() if n.startswith(where)]
    la = network(h, language, where) + (onto if kind == "bert" else h)
    weights = torch.randn_like(result)
    ours = torch.autograd.grad((result * weights).sum(), mine)
    theirs = torch.autograd.grad(((network(la, own, where) + onto) * weights).sum(), mine)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_what_is_saved_comes_back_and_another_language_goes_under_it(kind: str, request: pytest.FixtureRequest) -> None:
    """The file holds the task alone; bit for bit the same model comes back; swapped, it is the same task on the other language."""
    base = loaded(request.getfixturevalue(FIXTURES[kind]))
    store = open_store()
    for language in ("english", "german"):
        adapter(store, base.base, language, "language_adapter")
    adapter(store, base.base, "bare-german", "language_adapter", invertible=None)
    for language in ("english", "german", "bare-german"):
        adapter(store, base.base, f"task-{language}", "pfeiffer_adapter", on=language)
    held = file_of("task-english")
    assert sum(t.numel() for t in held.values()) == LAYERS * (2 * D * (D // 16) + D // 16 + D)
    swapped = parts.swap(store, "task-english", "german", "task-in-german")
    assert swapped.meta["parts"] == [{"name": "german", "digest": find(store, "german").digest}]
    assert all(torch.equal(file_of("task-in-german")[key], value) for key, value in held.items())
    first, second = (out(load_model(store, n, dtype="fp32", device="cpu")) for n in ("task-english", "task-in-german"))
    assert not torch.allclose(first, second)
    back = parts.swap(store, "task-in-german", "english", "back")
    assert torch.equal(out(load_model(store, back, dtype="fp32", device="cpu")), first)
    bare = parts.swap(store, "task-english", "bare-german", "task-in-bare")
    third = load_model(store, bare, dtype="fp32", device="cpu")
    assert not any("coupling" in name for name, _ in third.module.named_modules())
    assert not torch.allclose(out(third), second)
    plain = out(base)
    for name in ("task-english", "english", "task-in-german"):
        attach(base, find(store, name), name)
    for name in ("task-english", "task-in-german"):
        select(base, name)
        expected = first if name == "task-english" else second
        assert torch.equal(out(base), expected)
    select(base, None)
    assert torch.equal(out(base), plain)
    for name in list(base.attached):
        detach(base, name)
    assert torch.equal(out(base), plain)
    with pytest.raises(ConflictError, match="is needed by"):
        from luthier.store.models import register, remove

        register(store, swapped)
        remove(store, "german")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_rows_of_a_mixed_batch_are_answered_as_alone(kind: str, request: pytest.FixtureRequest) -> None:
    base = loaded(request.getfixturevalue(FIXTURES[kind]))
    store = open_store()
    adapter(store, base.base, "english", "language_adapter")
    adapter(store, base.base, "task", "pfeiffer_adapter", on="english")
    plain = out(base)
    alone = {}
    for name in ("english", "task"):
        attach(base, find(store, name), name)
        select(base, name)
        alone[name] = out(base)
    held = base.attached
    assert held["english"].peft_model is held["task"].peft_model
    with rows.answering([held["task"].peft_name, None]):
        mixed = out(base)
    torch.testing.assert_close(mixed[0], alone["task"][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mixed[1], plain[1], rtol=1e-5, atol=1e-5)
    with rows.answering([held["task"].peft_name, held["english"].peft_name]):
        mixed = out(base)
    torch.testing.assert_close(mixed[0], alone["task"][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mixed[1], alone["english"][1], rtol=1e-5, atol=1e-5)


def test_an_adapter_on_a_plain_one_in_both_stacks(tiny_t5: str) -> None:
    """Encoder-decoders have no language adapters, but adapters on adapters."""
    store, base = open_store(), loaded(tiny_t5)
    adapter(store, base.base, "first")
    adapter(store, base.base, "second", on="first")
    ids = {"input_ids": IDS, "decoder_input_ids": IDS[:, :3]}
    with torch.no_grad():
        plain = base.module.eval()(**ids).logits
        answers = []
        for name in ("first", "second"):
            attach(base, find(store, name), name)
            select(base, name)
            answers.append(base.module(**ids).logits)
        blocks = [m for m in base.module.modules() if type(m).__name__ == "Stacked"]
        assert len(blocks) == 2 * LAYERS
        for (
            block
        ) in blocks:  # the upper adapter says nothing: the stream leaves as it came, the lower one's part with it
            block.own.up.weight.zero_()
            block.own.up.bias.zero_()
        assert torch.equal(base.module(**ids).logits, plain)
    assert not torch.allclose(answers[0], answers[1])


def test_what_goes_below_is_checked_before_any_work(tiny_encoder: str, tiny_decoder: str) -> None:
    store, base = open_store(), loaded(tiny_encoder).base
    adapter(store, base, "english", "language_adapter")
    adapter(store, base, "half", "language_adapter", blocks=[0])
    adapter(store, base, "task", "pfeiffer_adapter", on="english")
    adapter(store, base, "low-rank", "lora")

    def needs(on: str) -> Any:
        return pfeiffer_adapter.needs(store, base, pfeiffer_adapter.Config(on=on))

    assert pfeiffer_adapter.needs(store, base, pfeiffer_adapter.Config()) == []
    assert needs("english")[0]["digest"] == find(store, "english").digest
    with pytest.raises(NotFoundError, match=r"'englich'.*'english'"):
        needs("englich")
    with pytest.raises(
        UnsupportedError, match=r"method\.on must name models tuned by language_adapter.*low-rank was made by lora"
    ):
        needs("low-rank")
    with pytest.raises(UnsupportedError, match="task is built on another adapter itself"):
        needs("task")
    with pytest.raises(MismatchError, match=r"half is not in the same places as the new adapter: places \(1 layers\)"):
        pfeiffer_adapter.build(loaded(tiny_encoder), pfeiffer_adapter.Config(on="half"))
    adapter(store, loaded(tiny_decoder).base, "elsewhere", "language_adapter")
    with pytest.raises(MismatchError, match="elsewhere was trained on tiny-decoder"):
        needs("elsewhere")


def test_what_cannot_be_swapped(tiny_encoder: str) -> None:
    store, base = open_store(), loaded(tiny_encoder).base
    adapter(store, base, "english", "language_adapter")
    adapter(store, base, "half", "language_adapter", blocks=[0])
    adapter(store, base, "task", "pfeiffer_adapter", on="english")
    adapter(store, base, "alone", "pfeiffer_adapter")
    with pytest.raises(UnsupportedError, match="alone was not trained on top of another adapter"):
        parts.swap(store, "alone", "english", "new")
    with pytest.raises(ConflictError, match="'english' is taken"):
        parts.swap(store, "task", "english", "english")
    with pytest.raises(MismatchError, match="half is not in the same places as task"):
        parts.swap(store, "task", "half", "new")
    with pytest.raises(UnsupportedError, match="cannot be merged"):
        merge(load_model(store, "task", dtype="fp32", device="cpu"))
    with pytest.raises(UnsupportedError, match="cannot be merged"):
        merge(language_adapter.build(loaded(tiny_encoder), language_adapter.Config()))
