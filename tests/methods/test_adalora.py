"""AdaLoRA: its equation, and its ranks step by step against PEFT's allocation."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.tiny import each_linear

from luthier.core.catalog import load
from luthier.core.dataset import Dataset, Example
from luthier.core.errors import InputError
from luthier.core.message import user
from luthier.core.task import PromptTemplate
from luthier.methods.adalora import Config, build, steps, trained_parameters
from luthier.models.load import LoadedModel, load_model
from luthier.objectives._rows import Limits
from luthier.store.database import open_store
from luthier.training import checkpoint
from luthier.training.config import TrainConfig
from luthier.training.interrupt import Halt
from luthier.training.loop import train
from luthier.training.optimizer import Optimizer
from luthier.training.work import Work

COUNTS = each_linear(lambda i, o: 12 * (i + o + 1))

LABELS = ("billing", "delivery")


@pytest.fixture
def model(tiny_decoder: str) -> LoadedModel:
    model = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
    model.module.requires_grad_(False)
    return model


def test_the_correction_is_p_e_q(model: LoadedModel) -> None:
    layer = build(model, Config(rank=2, start_rank=4, alpha=6)).module.base_model.model.model.layers[0].mlp.down_proj
    q, e, p = layer.lora_A["default"], layer.lora_E["default"], layer.lora_B["default"]
    assert torch.count_nonzero(e) == 0
    with torch.no_grad():
        e.normal_()
    x = torch.randn(5, 64)
    w = layer.base_layer.weight + 6 / 4 * p @ torch.diag(e[:, 0]) @ q
    torch.testing.assert_close(layer(x), x @ w.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("interval", [1, 3])
def test_ranks_go_as_pefts_do(model: LoadedModel, interval: int) -> None:
    """The same gradients, weights and zeros over a whole schedule."""
    total, config = 20, Config(rank=2, start_rank=4, warmup=0.1, final=0.25, interval=interval, orthogonality=0.5)
    torch.manual_seed(0)
    ours = build(model, config).module
    theirs = copy.deepcopy(ours)
    told = theirs.peft_config["default"]
    told.total_step, told.tinit, told.tfinal, told.deltaT = total, 2, 5, interval
    adam = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=5e-3, weight_decay=0.0)
    optimizer, around = Optimizer(ours), steps(model, config)
    draw = torch.Generator().manual_seed(1)
    for step in range(1, total + 1):
        ids = torch.randint(0, 300, (4, 12), generator=draw)
        theirs(input_ids=ids, labels=ids).loss.backward()  # PEFT adds the orthogonality term to this loss
        adam.step()
        theirs.base_model.update_and_allocate(step)
        adam.zero_grad()
        ours.get_base_model()(input_ids=ids, labels=ids).loss.backward()
        optimizer.accumulate()
        around.before(step, total, optimizer.masters(), optimizer.gradients())
        optimizer.step(5e-3, 0.0)
        around.after(step, total, optimizer.masters())
        optimizer.publish()
        one, other = dict(ours.named_parameters()), dict(theirs.named_parameters())
        for name, weight in one.items():
            if weight.requires_grad:
                torch.testing.assert_close(weight, other[name], rtol=1e-3, atol=1e-5, msg=f"step {step}, {name}")
                if ".lora_E." in name:
                    assert torch.equal(weight == 0, other[name] == 0), f"step {step}, {name}"
    left = sum(int(torch.count_nonzero(p)) for name, p in ours.named_parameters() if ".lora_E." in name)
    assert left == 2 * 14  # rank times the targets


def prepared(model: LoadedModel) -> Work:
    objective = load("objectives", "classify")
    config = objective.configure()
    rows = [("refund the deposit", "billing"), ("where is the parcel", "delivery")] * 6
    data = Dataset("tiny", "labelled", tuple(Example(str(i), user(t), label) for i, (t, label) in enumerate(rows)))
    found = objective.module.prepare(data, model, PromptTemplate(labels=LABELS), config, Limits(128))
    return Work(found, lambda r: objective.module.collate(r, model), lambda b: objective.module.loss(model, b, config))


def trained(base: str, folder: Path, metrics: Any, dtype: str = "fp32", *, resume: bool = False) -> dict[str, Any]:
    model = load_model(open_store(), base, dtype=dtype, device="cpu", labels=LABELS)
    model.labels = LABELS
    model.module.requires_grad_(False)
    config = Config(rank=2, start_rank=4)
    torch.manual_seed(0)
    model = build(model, config)
    settings = TrainConfig(epochs=4, batch_size=4, learning_rate=1e-2, checkpoint_every=1)
    train(
        model.module,
        prepared(model),
        settings,
        folder=folder,
        metrics=metrics,
        steps=steps(model, config),
        resume=checkpoint.latest(folder) if resume else None,
    )
    return {name: p.detach() for name, p in model.module.named_parameters()}


def nothing(record: object) -> None:
    """For metrics that nobody reads."""


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("base", ["tiny_decoder", "tiny_encoder"])
def test_the_budget_is_kept(base: str, dtype: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    found = trained(request.getfixturevalue(base), tmp_path, nothing, dtype)
    values = [p for name, p in found.items() if ".lora_E." in name]
    assert sum(int(torch.count_nonzero(p)) for p in values) <= 2 * len(values) < sum(p.numel() for p in values)


@pytest.mark.parametrize("at", [3, 9])
def test_a_resumed_training_goes_on_exactly(at: int, tiny_decoder: str, tmp_path: Path) -> None:
    straight = trained(tiny_decoder, tmp_path / "straight", nothing)

    def stop(record: Any) -> None:
        if record["step"] == at:
            raise Halt("enough")

    with pytest.raises(Halt):
        trained(tiny_decoder, tmp_path / "again", stop)
    again = trained(tiny_decoder, tmp_path / "again", nothing, resume=True)
    assert straight.keys() == again.keys()
    assert all(torch.equal(straight[name], again[name]) for name in straight)


def test_tune_tells_the_method_of_every_step(tiny_decoder: str, tmp_path: Path) -> None:
    """The verb itself, from a configuration to a file in which ranks are zero."""
    import json

    from luthier.models.weights import read_tensors
    from luthier.store.artifacts import path_of
    from luthier.training.tune import tune

    rows = [{"text": f"refund parcel number {n}", "label": LABELS[n % 2]} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = tune(
        {
            "model": tiny_decoder,
            "data": {"path": str(tmp_path / "rows.jsonl")},
            "method": {"name": "adalora", "rank": 2, "start_rank": 4},
            "train": {"epochs": 3, "batch_size": 4, "dtype": "fp32", "device": "cpu", "validate_every": 100},
        }
    )
    held = read_tensors(path_of(open_store(), result.model.digest) / "adapter_model.safetensors")
    values = [tensor for name, tensor in held.items() if "lora_E" in name]
    assert sum(int(torch.count_nonzero(p)) for p in values) == 2 * len(values)


def test_bounds(model: LoadedModel) -> None:
    assert trained_parameters(model.module, Config(rank=4, targets=["v_proj"])) == 2 * 6 * (32 + 16 + 1)
    configure = load("methods", "adalora").configure
    with pytest.raises(InputError, match=r"start_rank must be at least rank \(8\); got 4"):
        configure({"start_rank": 4})
    with pytest.raises(InputError, match=r"must leave steps between them; got 0\.5 \+ 0\.5"):
        configure({"warmup": 0.5, "final": 0.5})
    with pytest.raises(InputError, match=r"method\.start_rank must be at most 16"):
        build(model, Config(rank=12))
