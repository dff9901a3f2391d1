"""The same behaviour asked of every method in the catalogue, on every architecture that it declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.catalog import EntryConfig, load, names
from luthier.core.dataset import Dataset, Example
from luthier.core.errors import InputError
from luthier.core.message import user
from luthier.core.model import ModelRecord
from luthier.core.task import PromptTemplate
from luthier.models.attach import SAVES, attach, detach, save_trained, select
from luthier.models.load import LoadedModel, load_model
from luthier.models.merge import merge
from luthier.models.weights import read_tensors
from luthier.objectives._rows import Limits
from luthier.store.artifacts import put, staged
from luthier.store.database import open_store
from luthier.store.models import register
from luthier.training import checkpoint
from luthier.training.config import TrainConfig
from luthier.training.interrupt import Halt
from luthier.training.loop import Work, train

REPOSITORY = Path(__file__).parents[2]
LABELS = ("billing", "delivery")
ROWS = [("refund the deposit", "billing"), ("where is the parcel", "delivery")] * 4
ENGINES = {"torch", "llamacpp"}
HOW = {"swap", "merge", "no"}
CASES = [(name, arch) for name in names("methods") for arch in sorted(load("methods", name).module.DEFAULTS)]
OPTIONS: dict[str, dict[str, Any]] = {  # what a method needs, and no more
    "peft": {"type": "HRA", "options": {"r": 4}},
    "diff_pruning": {"share": 0.1},  # of so few weights, half a percent is too little to see a loss fall
    "fish_mask": {"data": str(REPOSITORY / "examples/support/tickets.jsonl"), "samples": 4},
}
OTHER_MODELS = {("bitfit", "decoder"): "gpt2"}  # a Llama has no biases


@dataclass(frozen=True)
class Shape:
    """The tiny models' sizes, for closed formulas. d: width, f: feed-forward, k: keys and values together."""

    layers: int = 2
    d: int = 32
    f: int = 64
    k: int = 2 * 16
    head: int = 32 * 2 + 2


S = Shape()
BERT_BLOCK = 4 * (S.d * S.d + S.d) + 2 * S.d * S.f + S.f + S.d + 4 * S.d
LLAMA_BLOCK = 2 * S.d * S.d + S.d * S.k + 3 * S.d * S.f + 2 * S.d
COUNTS: dict[tuple[str, str], int] = {
    ("freeze", "decoder"): LLAMA_BLOCK,  # a quarter of two blocks, rounded up
    ("freeze", "encoder"): BERT_BLOCK + S.head,
    ("linear_probe", "encoder"): S.head,
    ("lora", "decoder"): S.layers * 8 * (2 * 2 * S.d + 2 * S.d + S.k + 3 * (S.d + S.f)),
    ("lora", "encoder"): S.layers * 8 * (4 * 2 * S.d + 2 * (S.d + S.f)) + S.head,
    # GPT-2: two norms, one product for query, key and value, one for the output, two in the feed-forward; and the last norm
    ("bitfit", "decoder"): S.layers * (2 * S.d + 3 * S.d + S.d + S.f + S.d) + S.d,
    ("bitfit", "encoder"): S.d + S.layers * (4 * S.d + S.f + S.d + 2 * S.d) + S.head,
    ("layer_norm", "decoder"): (2 * S.layers + 1) * S.d,
    ("layer_norm", "encoder"): (2 * S.layers + 1) * 2 * S.d + S.head,
    ("diff_pruning", "decoder"): 2 * S.layers * (2 * S.d * S.d + S.d * S.k + 3 * S.d * S.f),
    ("diff_pruning", "encoder"): 2 * S.layers * (4 * S.d * S.d + 2 * S.d * S.f) + S.head,
    ("fish_mask", "decoder"): round(0.005 * S.layers * (2 * S.d * S.d + S.d * S.k + 3 * S.d * S.f)),
    ("fish_mask", "encoder"): round(0.005 * S.layers * (4 * S.d * S.d + 2 * S.d * S.f)) + S.head,
    ("attention_only", "decoder"): S.layers * (2 * S.d * S.d + S.d * S.k),
    ("attention_only", "encoder"): S.layers * 4 * (S.d * S.d + S.d) + S.head,
}
SMALL = {16: 4, 32: 4, 64: 8}  # the first factor of each side: 4 x 4, 4 x 8, 8 x 8
SIDES = {  # (inputs, outputs) of every linear layer of a block
    "decoder": [(S.d, S.d)] * 2 + [(S.d, S.k // 2)] * 2 + [(S.d, S.f)] * 2 + [(S.f, S.d)],
    "encoder": [(S.d, S.d)] * 4 + [(S.d, S.f), (S.f, S.d)],
}
for _kind, _sides in SIDES.items():
    _of_layer: dict[str, Callable[[int, int], int]] = {
        "adalora": lambda i, o: 12 * (i + o + 1),
        "dora": lambda i, o: 8 * (i + o) + o,
        "loha": lambda i, o: 2 * 8 * (i + o),
        "lokr": lambda i, o: SMALL[i] * SMALL[o] + (i // SMALL[i]) * (o // SMALL[o]),
        "vera": lambda i, o: 256 + o,
        "oft": lambda i, o: i // 32 * (32 * 31 // 2),
        "peft": lambda i, o: i * 4,  # HRA: four reflections of the inputs
    }
    for _name, _formula in _of_layer.items():
        COUNTS[_name, _kind] = S.layers * sum(_formula(i, o) for i, o in _sides) + (S.head if _kind == "encoder" else 0)
COUNTS["ia3", "decoder"] = S.layers * (S.k + S.f)
COUNTS["ia3", "encoder"] = S.layers * (2 * S.d + S.f) + S.head
"""How many parameters each method trains on the tiny models with its default options, worked out from their sizes."""
KEPT = {
    ("diff_pruning", "decoder"): round(0.1 * COUNTS["diff_pruning", "decoder"] / 2),
    ("diff_pruning", "encoder"): round(0.1 * (COUNTS["diff_pruning", "encoder"] - S.head) / 2) + S.head,
}
"""How many of them the file holds, where a method lets go of some."""


def fresh(
    home: Path, request: pytest.FixtureRequest, architecture: str, method: str = "", dtype: str = "fp32"
) -> LoadedModel:
    name = request.getfixturevalue(f"tiny_{OTHER_MODELS.get((method, architecture), architecture)}")
    model = load_model(open_store(), name, dtype=dtype, device="cpu", labels=LABELS)
    model.labels = LABELS
    model.module.requires_grad_(False)
    return model


def built(model: LoadedModel, method: str, seed: int = 0) -> LoadedModel:
    torch.manual_seed(seed)
    entry = load("methods", method)
    return entry(model, entry.configure(OPTIONS.get(method)))


def around(model: LoadedModel, method: str) -> Any:
    """What the method does around each step, for the loop."""
    entry = load("methods", method)
    steps = entry.optional("steps")
    return None if steps is None else steps(model, entry.configure(OPTIONS.get(method)))


def run(model: LoadedModel, method: str, config: TrainConfig, folder: Path, *, stop_at: int = 0) -> None:
    """Train, from the last checkpoint in ``folder`` if there is one; ``stop_at``: give up after that step."""

    def watch(record: Mapping[str, Any]) -> None:
        if record["step"] == stop_at:
            raise Halt("enough")

    train(
        model.module,
        prepared(model),
        config,
        folder=folder,
        metrics=watch,
        steps=around(model, method),
        resume=checkpoint.latest(folder),
    )


def prepared(model: LoadedModel, *, dtype: torch.dtype = torch.float32) -> Work:
    objective = load("objectives", "classify")
    config = objective.configure()
    data = Dataset("tiny", "labelled", tuple(Example(str(i), user(t), label) for i, (t, label) in enumerate(ROWS)))
    rows = objective.module.prepare(data, model, PromptTemplate(labels=LABELS), config, Limits(128))
    return Work(rows, lambda r: objective.module.collate(r, model), lambda b: objective.module.loss(model, b, config))


def outputs(model: LoadedModel, work: Work) -> torch.Tensor:
    """What the model says about the rows: label scores or logits."""
    from luthier.models.score import packed_log_probs

    model.module.eval()
    batch = work.collate(work.rows)
    with torch.no_grad():
        if model.architecture == "decoder":
            return torch.stack(packed_log_probs(model.module, batch.rows, model.device))
        if batch.features is not None:
            return model.module.classify(batch.features)
        return model.module(batch.ids, batch.mask)


@pytest.mark.parametrize("method", names("methods"))
def test_declarations(method: str) -> None:
    module = load("methods", method).module
    assert issubclass(module.Config, EntryConfig)
    assert len(module.Config.model_fields) <= 15
    assert module.SAVES in SAVES
    assert module.DEFAULTS and set(module.DEFAULTS) <= {"decoder", "encoder"}
    assert set(module.SERVING) == set(module.DEFAULTS)
    for architecture, engines in module.SERVING.items():
        assert set(engines) == ENGINES and set(engines.values()) <= HOW, architecture
    for defaults in module.DEFAULTS.values():
        assert set(defaults) <= set(TrainConfig.model_fields)
        assert "learning_rate" in defaults


@pytest.mark.parametrize("method", names("methods"))
def test_unknown_options_are_refused(method: str) -> None:
    with pytest.raises(InputError, match="unknown key 'nothing'"):
        load("methods", method).configure({"nothing": 1})


@pytest.mark.parametrize(("method", "architecture"), CASES)
def test_trains_what_it_says_and_nothing_else(
    method: str, architecture: str, home: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model = built(fresh(home, request, architecture, method), method)
    trained = {name for name, p in model.module.named_parameters() if p.requires_grad}
    assert trained
    if architecture == "encoder":
        assert {"head.weight", "head.bias"} <= trained
    work = prepared(model)
    before = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    config = TrainConfig(epochs=20, batch_size=4, learning_rate=5e-3)
    records: list[Any] = []
    train(model.module, work, config, folder=tmp_path / "run", metrics=records.append, steps=around(model, method))
    changed = {name for name, p in model.module.named_parameters() if not torch.equal(p, before[name])}
    assert changed <= trained
    unread = {name for name in trained if before[name].ndim == 2 and "position" not in name} - changed
    assert not unread, "declared trainable, never moved"
    losses = [record["loss"] for record in records]
    assert sum(losses[-4:]) < sum(losses[:4])


@pytest.mark.parametrize(("method", "architecture"), CASES)
def test_trains_as_many_parameters_as_the_formula_says(
    method: str, architecture: str, home: Path, request: pytest.FixtureRequest
) -> None:
    model = fresh(home, request, architecture, method)
    sizes = {name: p.numel() for name, p in model.module.named_parameters()}
    config = (model.module if architecture == "decoder" else model.module.body).config
    assert (config.num_hidden_layers, config.hidden_size) == (S.layers, S.d)
    model = built(model, method)
    trained = sum(p.numel() for p in model.module.parameters() if p.requires_grad)
    words = next(
        size for name, size in sizes.items() if "embed_tokens" in name or "word_embeddings" in name or "wte" in name
    )
    expected = {
        "full": sum(sizes.values()),
        "lora_and_embeddings": COUNTS["lora", architecture] + words,  # the tiny decoder's head is its embeddings
    }.get(method) or COUNTS[method, architecture]
    formula = load("methods", method).optional("trained_parameters")
    if formula is not None:
        bare = fresh(home, request, architecture, method)
        inner = bare.module if architecture == "decoder" else bare.module.body
        config = load("methods", method).configure(OPTIONS.get(method))
        assert trained == formula(inner, config) + (S.head if architecture == "encoder" else 0)
    assert trained == expected


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("method", "architecture"), CASES)
def test_saved_loaded_taken_off_and_merged(
    method: str, architecture: str, dtype: str, home: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """What comes back answers as what was trained; the file holds nothing else; the base under it stays what it was."""
    store, saves = open_store(), load("methods", method).module.SAVES
    model = built(fresh(home, request, architecture, method, dtype), method)
    config = TrainConfig(epochs=2, batch_size=4, learning_rate=1e-2)
    untrained = outputs(model, prepared(model))
    run(model, method, config, tmp_path / "run")
    expected = outputs(model, prepared(model))
    assert not torch.allclose(expected, untrained)
    with staged(store) as folder:
        save_trained(model, folder, {"saves": saves})
        held = [read_tensors(path) for path in folder.glob("*.safetensors")]
        digest, size = put(store, folder)
    trained = sum(p.numel() for p in model.module.parameters() if p.requires_grad)
    assert sum(
        t.numel() for tensors in held for n, t in tensors.items() if "#places" not in n and ".lm_head." not in n
    ) == KEPT.get((method, architecture), trained)  # PEFT's layout holds a tied head twice
    record = register(store, ModelRecord("result", "adapter", model.architecture, digest, size, base=model.base.name))
    again = load_model(store, record, dtype=dtype, device="cpu")
    again.labels = LABELS
    near = {"rtol": 1e-4, "atol": 1e-5} if dtype == "fp32" else {"rtol": 5e-2, "atol": 5e-2}
    near = near if saves == "adapter" else {"rtol": 0.0, "atol": 0.0}
    torch.testing.assert_close(outputs(again, prepared(again)), expected, **near)
    if saves == "weights":
        return
    bare = load_model(store, model.base, dtype=dtype, device="cpu")
    base = load_model(store, model.base, dtype=dtype, device="cpu")
    attach(base, record, "result")
    for _ in range(2):
        torch.testing.assert_close(body_output(base), body_output(bare), rtol=0, atol=0)
        select(base, "result")
        torch.testing.assert_close(body_output(base), body_output(again), rtol=0, atol=0)
        select(base, None)
    detach(base, "result")
    assert_same_weights(base, bare)
    if dtype == "fp32" and "merge" in load("methods", method).module.SERVING[architecture].values():
        torch.testing.assert_close(body_output(merge(again)), body_output(model), rtol=1e-5, atol=1e-5)


def body_output(model: LoadedModel) -> torch.Tensor:
    """What the model makes of some tokens, its head and labels aside."""
    ids = torch.tensor([[5, 9, 30, 7], [8, 6, 40, 11]])
    with torch.no_grad():
        if model.architecture == "decoder":
            return model.module.eval()(ids).logits
        return model.module.eval().body(ids).last_hidden_state


def assert_same_weights(model: LoadedModel, other: LoadedModel) -> None:
    ours, theirs = model.module.state_dict(), other.module.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("method", "architecture"), CASES)
def test_the_same_seed_gives_the_same_model_also_when_resumed(
    method: str, architecture: str, home: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    config = TrainConfig(epochs=2, batch_size=4, learning_rate=1e-2, checkpoint_every=1)
    states = []
    for stops in ((0,), (3, 0)):  # straight, and given up after a checkpoint
        for stop_at in stops:
            torch.manual_seed(3)
            model = built(fresh(home, request, architecture, method), method, seed=3)
            try:
                run(model, method, config, tmp_path / str(len(stops)), stop_at=stop_at)
            except Halt:
                assert stop_at
        states.append({n: p.detach().clone() for n, p in model.module.named_parameters()})
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
