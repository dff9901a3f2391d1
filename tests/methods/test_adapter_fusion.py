"""AdapterFusion against the paper's equations; what it is built on is checked before, kept while needed, and read by digest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.methods.made import adapter
from tests.methods.tiny import FIXTURES, HEAD, KINDS, LAYERS, D
from torch import Tensor

from luthier.core.errors import ConflictError, InputError, MismatchError, NotFoundError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.methods import adapter_fusion
from luthier.methods.adapter_fusion import Config
from luthier.models import rows
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel, load_model
from luthier.models.merge import merge
from luthier.models.weights import read_tensors
from luthier.store.artifacts import path_of
from luthier.store.database import Store, open_store
from luthier.store.models import find, list_models, register, remove, rename

OPTIONS = {"adapters": ["first", "second"]}
_EACH = 3 * D * D + 2 * D  # query and key with biases, value
COUNTS = {kind: LAYERS * (1 + (kind == "t5")) * _EACH + HEAD[kind] for kind in KINDS}
IDS = torch.tensor([[5, 9, 30, 7, 12], [8, 6, 40, 11, 3]])


def prepare(store: Store, base: ModelRecord) -> None:
    adapter(store, base, "first")
    adapter(store, base, "second", bottleneck=4, activation="gelu")


def loaded(name: str) -> LoadedModel:
    torch.manual_seed(0)
    model = load_model(open_store(), name, dtype="fp32", device="cpu")
    prepare(open_store(), model.base)
    return model


def given(kind: str) -> dict[str, Tensor]:
    return {"input_ids": IDS} | ({"decoder_input_ids": IDS[:, :3]} if kind == "t5" else {})


def randomised(model: LoadedModel) -> dict[str, Tensor]:
    """Trained values that are not those of the start; returns them by name."""
    found = {n: p for n, p in inner_of(model).named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in found.items():
            if "head" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return found


def paper(p: dict[str, Tensor], where: str, v: Tensor, adapters: list[dict[str, Tensor]], kinds: list[Any]) -> Tensor:
    """sum_n softmax_n((Q v) . (K z_n)) V z_n with z_n = W_up f(W_down v + b) + b, an adapter at a time."""
    outs = [
        f(v @ w[f"{where}.down.weight"].T + w[f"{where}.down.bias"]) @ w[f"{where}.up.weight"].T + w[f"{where}.up.bias"]
        for w, f in zip(adapters, kinds, strict=True)
    ]
    q = v @ p[f"{where}.query.weight"].T + p[f"{where}.query.bias"]
    scores = [((z @ p[f"{where}.key.weight"].T + p[f"{where}.key.bias"]) * q).sum(-1) for z in outs]
    most = torch.stack(scores).amax(0)  # T5's states are large
    scores = [score - most for score in scores]
    total = sum(score.exp() for score in scores)
    return sum(
        (score.exp() / total)[..., None] * (z @ p[f"{where}.value.weight"].T)
        for score, z in zip(scores, outs, strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_the_papers(kind: str, request: pytest.FixtureRequest) -> None:
    """Every place, checked from inside: what goes in, what comes out, and the gradient of each trained parameter."""
    name = request.getfixturevalue(FIXTURES[kind])
    model = adapter_fusion.build(loaded(name), Config(**OPTIONS))
    p = {n.replace(".default", ""): v for n, v in randomised(model).items()}
    store = open_store()
    files = [
        read_tensors(path_of(store, find(store, each).digest) / "adapter_model.safetensors")
        for each in OPTIONS["adapters"]
    ]
    seen: list[tuple[str, Tensor, Tensor, Tensor]] = []
    for key, module in inner_of(model).named_modules():
        if type(module).__name__ == "Fusion":
            where = key.removesuffix(".default")
            module.register_forward_hook(lambda m, a, out, where=where: seen.append((where, a[0], a[1], out)))
    loss = inner_of(model).eval()(**given(kind))[0].square().sum()
    assert len(seen) == LAYERS * (1 + (kind == "t5"))
    for where, v, onto, out in seen:
        fused = paper(p, where, v, files, [torch.relu, torch.nn.functional.gelu])
        torch.testing.assert_close(out - onto, fused, rtol=1e-4, atol=1e-5)
    where, v, onto, out = seen[-1]
    mine = {n: x for n, x in p.items() if n.startswith(where)}
    assert len(mine) == 5
    weights = torch.randn_like(out)
    ours = torch.autograd.grad((out * weights).sum(), list(mine.values()), retain_graph=True)
    fused = paper(p, where, v, files, [torch.relu, torch.nn.functional.gelu])
    theirs = torch.autograd.grad(((onto + fused) * weights).sum(), list(mine.values()), retain_graph=True)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    loss.backward()
    assert all(x.grad is not None for x in p.values())


def test_it_starts_as_the_mean_of_its_adapters(tiny_decoder: str) -> None:
    """With no preference yet (queries and keys are near zero) every adapter counts alike, and values are the identity."""
    module = adapter_fusion.build(loaded(tiny_decoder), Config(**OPTIONS)).module
    fusion = next(m for m in module.modules() if type(m).__name__ == "Fusion")
    v, onto = torch.randn(2, 3, D) * 0.1, torch.randn(2, 3, D)
    mean = sum(part.added(v) for part in fusion.parts) / 2
    torch.testing.assert_close(fusion(v, onto) - onto, mean, rtol=0.05, atol=0.01)


def test_one_adapter_alone_answers_where_the_other_says_nothing(tiny_encoder: str) -> None:
    """Keys that always prefer one adapter give that adapter's model, through the values at the identity."""
    from luthier.models.attach import attach, select

    model = adapter_fusion.build(loaded(tiny_encoder), Config(**OPTIONS))
    for fusion in (m for m in model.module.modules() if type(m).__name__ == "Fusion"):
        with torch.no_grad():
            fusion.value.weight.copy_(torch.eye(D))
            second = fusion.parts[1]
            second.up.weight, second.up.bias = torch.zeros_like(second.up.weight), torch.full((D,), 50.0)
            fusion.query.weight.zero_()
            fusion.query.bias.fill_(-1.0)
            fusion.key.weight.copy_(torch.eye(D))
    other = loaded(tiny_encoder)
    attach(other, find(open_store(), "first"), "first")
    select(other, "first")
    got, expected = (each.module.eval().body(IDS).last_hidden_state for each in (model, other))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_mixed_batch_are_answered_as_alone(kind: str, request: pytest.FixtureRequest) -> None:
    module = inner_of(adapter_fusion.build(loaded(request.getfixturevalue(FIXTURES[kind])), Config(**OPTIONS))).eval()
    with torch.no_grad():
        alone = module(**given(kind))[0]
        with module.disable_adapter():
            base = module(**given(kind))[0]
        with rows.answering(["default", None]):
            mixed = module(**given(kind))[0]
    torch.testing.assert_close(mixed[0], alone[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mixed[1], base[1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(alone[0], base[0])


def test_what_it_is_built_on_is_checked_before_any_work(tiny_encoder: str, tiny_decoder: str) -> None:
    store, model = open_store(), loaded(tiny_encoder)

    def refused(*names: str) -> Any:
        return adapter_fusion.needs(store, model.base, Config(adapters=list(names)))

    with pytest.raises(InputError, match=r"at least 2"):
        from luthier.core.catalog import load

        load("methods", "adapter_fusion").configure({"adapters": ["first"]})
    with pytest.raises(InputError, match=r"must name each adapter once; got first, first"):
        refused("first", "first")
    with pytest.raises(NotFoundError, match=r"'frist'.*'first'"):
        refused("frist", "second")
    with pytest.raises(UnsupportedError, match=r"is a base, not something that tuning made"):
        refused("first", model.base.name)
    adapter(store, model.base, "low-rank", "lora")
    with pytest.raises(
        UnsupportedError, match=r"method\.adapters must name .*pfeiffer_adapter.*low-rank was made by lora"
    ):
        refused("first", "low-rank")
    adapter(store, model.base, "half", blocks=[1])
    with pytest.raises(
        MismatchError, match=r"half is not in the same places as first: places \(1 layers\) against \(2, of which"
    ):
        refused("first", "half")
    adapter(store, model.base, "houlsby", "adapter")
    with pytest.raises(UnsupportedError, match=r"houlsby trained the norms of its base") as error:
        refused("first", "houlsby")
    assert "train_norms=false" in str(error.value.hint)
    other = load_model(store, tiny_decoder, dtype="fp32", device="cpu").base
    adapter(store, other, "elsewhere")
    with pytest.raises(MismatchError, match=r"elsewhere was trained on tiny-decoder"):
        refused("first", "elsewhere")


def test_parts_are_kept_while_they_are_needed(tiny_encoder: str) -> None:
    """A part cannot be removed, keeps its files when its name gets other weights, and goes with the last that needs it."""
    store, model = open_store(), loaded(tiny_encoder)
    first, second = (find(store, each) for each in OPTIONS["adapters"])
    meta = {"parts": [{"name": each.name, "digest": each.digest} for each in (first, second)]}
    fused = adapter(store, model.base, "fused", "adapter_fusion", **OPTIONS)
    register(store, ModelRecord(**{**fused.__dict__, "meta": {**fused.meta, **meta}}))
    with pytest.raises(ConflictError, match=r"'first' is needed by fused"):
        remove(store, "first")
    rename(store, "first", "once-first")
    assert find(store, "fused").meta["parts"][0] == {"name": "once-first", "digest": first.digest}
    expected = load_model(store, "fused", dtype="fp32", device="cpu").module.body(IDS).last_hidden_state
    register(store, ModelRecord(**{**second.__dict__, "digest": first.digest}), replace=True)
    assert path_of(store, second.digest).is_dir()
    again = load_model(store, "fused", dtype="fp32", device="cpu").module.body(IDS).last_hidden_state
    assert torch.equal(expected, again)
    remove(store, "fused")
    assert not (store.home.artifacts / second.digest).exists()
    remove(store, "second")
    remove(store, "once-first")
    assert [each.name for each in list_models(store, "adapter")] == []


def test_a_missing_part_is_named(tiny_encoder: str) -> None:
    import shutil

    store, model = open_store(), loaded(tiny_encoder)
    adapter(store, model.base, "fused", "adapter_fusion", **OPTIONS)
    digest = find(store, "second").digest
    shutil.rmtree(store.home.artifacts / digest)
    with pytest.raises(NotFoundError, match=rf"built on second \(digest {digest[:12]}\), which is not in the store"):
        load_model(store, "fused", dtype="fp32", device="cpu")


def test_it_does_not_answer_or_leave_without_its_parts(tiny_encoder: str, tmp_path: Any) -> None:
    """PEFT alone reads what was trained; a fusion of nothing is refused, and so is an export of it."""
    from peft import PeftModel

    from luthier.models.export_adapter import export_adapter

    store, model = open_store(), loaded(tiny_encoder)
    fused = adapter(store, model.base, "fused", "adapter_fusion", **OPTIONS)
    folder = path_of(store, fused.digest)
    alone = PeftModel.from_pretrained(model.module.body, str(folder), autocast_adapter_dtype=False).eval()
    with pytest.raises(NotFoundError, match="built on others, which are not in its file"):
        alone(IDS)
    with pytest.raises(UnsupportedError, match="fused is built on first, second"):
        export_adapter(store, "fused", "peft", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_it_cannot_be_merged(tiny_encoder: str) -> None:
    with pytest.raises(UnsupportedError, match="cannot be merged"):
        merge(adapter_fusion.build(loaded(tiny_encoder), Config(**OPTIONS)))


def test_tuned_on_record_and_done_again_when_a_part_changes(tiny_encoder: str, tmp_path: Any) -> None:
    """Through the verb: parts in lineage and row; the same work is found again, on other parts it is other work."""
    import json

    from luthier.store.lineage import lineage
    from luthier.training.tune import tune

    file = tmp_path / "tickets.jsonl"
    said = {"billing": "refund deposit pay", "delivery": "parcel courier late"}
    lines = [
        {"text": f"{word} {i}", "label": label} for i in range(4) for label, t in said.items() for word in t.split()
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def tuned(called: str, seed: int = 0, **method: Any) -> Any:
        config = {
            "name": called,
            "model": {"base": tiny_encoder},
            "data": {"path": str(file), "split": {"train": 0.8, "validation": 0.0, "test": 0.2}},
            "method": method,
            "train": {"epochs": 1, "seed": seed, "dtype": "fp32", "device": "cpu"},
        }
        return tune(config, replace=seed > 0)

    store = open_store()
    for name in OPTIONS["adapters"]:
        tuned(name, name="pfeiffer_adapter")
    done = tuned("fused", name="adapter_fusion", **OPTIONS)
    assert done.model.meta["parts"] == [{"name": n, "digest": find(store, n).digest} for n in OPTIONS["adapters"]]
    edges = {(edge.source.id, edge.relation) for edge in lineage("fused", store).edges}
    assert {("first", "built on"), ("second", "built on")} <= edges
    assert tuned("fused", name="adapter_fusion", **OPTIONS).reused
    with pytest.raises(NotFoundError, match="'thrid'"):
        tuned("other", name="adapter_fusion", adapters=["first", "thrid"])
    expected = load_model(store, "fused", dtype="fp32", device="cpu").module.body(IDS).last_hidden_state
    tuned("second", seed=1, name="pfeiffer_adapter")
    again = load_model(store, "fused", dtype="fp32", device="cpu").module.body(IDS).last_hidden_state
    assert torch.equal(expected, again)
    with pytest.raises(ConflictError, match="the name 'fused' is taken"):
        tuned("fused", name="adapter_fusion", **OPTIONS)
