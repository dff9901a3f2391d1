"""Computed again or remembered: the same loss and gradients, with less held in between."""

from __future__ import annotations

import pytest
import torch
from tests.methods.test_battery import CASES, LABELS, ROWS, built, fresh
from torch import Tensor, nn

from luthier.core.catalog import load
from luthier.core.dataset import Dataset, Example
from luthier.core.errors import UnsupportedError
from luthier.core.message import user
from luthier.core.task import PromptTemplate
from luthier.models.checkpointing import blocks, checkpointed
from luthier.models.fast import speed_up
from luthier.models.load import LoadedModel
from luthier.objectives._rows import Limits
from luthier.training.work import Work

PROMPT = PromptTemplate("Say what this note of a customer is about, in one word that is given here", labels=LABELS)

EVERYWHERE = ("full", "lora", "prefix", "unipelt", "ladder_side", "linear_probe")
"""Methods that are tried on all kinds of models, the others on one."""


def classified(model: LoadedModel) -> Work:
    """Rows that begin alike, so that a decoder reads their beginning once into a cache."""
    objective = load("objectives", "classify")
    config = objective.configure()
    data = Dataset("tiny", "labelled", tuple(Example(str(i), user(t), label) for i, (t, label) in enumerate(ROWS)))
    rows = objective.module.prepare(data, model, PROMPT, config, Limits(128))
    return Work(rows, lambda r: objective.module.collate(r, model), lambda b: objective.module.loss(model, b, config))


def learn(model: LoadedModel, work: Work) -> tuple[Tensor, dict[str, Tensor], int]:
    """Loss, gradients, and the bytes that autograd held at the end of the forward pass (parameters left out)."""
    held: dict[int, torch.UntypedStorage] = {}
    parameters = {p.untyped_storage().data_ptr() for p in model.module.parameters()}

    def hold(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            held[storage.data_ptr()] = storage  # kept alive, so that no other takes its place
        return tensor

    torch.manual_seed(7)
    model.module.train()
    model.module.zero_grad(set_to_none=True)
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        loss = work.loss(work.collate(work.rows)).value
    loss.backward()
    return (
        loss.detach(),
        {n: p.grad.clone() for n, p in model.module.named_parameters() if p.grad is not None},
        sum(s.nbytes() for s in held.values()),
    )


def randomised(model: LoadedModel) -> None:
    """Move what is trained away from zero, so that every gradient says something."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


@pytest.mark.parametrize(("method", "kind"), [case for case in CASES if case[1] == "llama" or case[0] in EVERYWHERE])
def test_every_method_learns_the_same(method: str, kind: str, request: pytest.FixtureRequest) -> None:
    model = built(fresh(request, kind, method), method)
    randomised(model)
    speed_up(model.module)
    work = classified(model)
    loss, gradients, held = learn(model, work)
    with checkpointed(model.module) as count:
        again, others, less = learn(model, work)
    own = {"ladder_side": 2}.get(method, 1)  # a side block at every block
    assert count == own * (4 if kind == "t5" else 2)
    torch.testing.assert_close(again, loss, rtol=1e-6, atol=1e-6)
    assert others.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-5, atol=1e-6, msg=name)
    frozen = kind == "bert" and model.module.body_is_frozen
    assert less == held if frozen else less < held, (less, held)
    after, _, whole = learn(model, work)
    assert torch.equal(after, loss)
    assert whole == held, "nothing of it is left"


def test_blocks_are_outermost_and_a_model_without_any_is_refused(request: pytest.FixtureRequest) -> None:
    model = built(fresh(request, "t5", "lora"), "lora")
    assert [type(block).__name__ for block in blocks(model.module)] == ["T5Block"] * 4
    with pytest.raises(UnsupportedError, match=r"train.checkpointing=off"), checkpointed(nn.Linear(2, 2)):
        pass
