"""Prompts for rollouts, the reference policy, and what a rollout's seed depends on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from luthier.core import catalog
from luthier.core.dataset import Dataset, Example
from luthier.core.errors import DataError, UnsupportedError
from luthier.core.message import Message, user
from luthier.core.task import PromptTemplate
from luthier.models.load import LoadedModel, load_model
from luthier.objectives._rollout import Moment, PromptRow, Reference, prompt_rows
from luthier.objectives._rows import Limits
from luthier.store.database import open_store


def loaded(name: str, method: str | None = None) -> LoadedModel:
    torch.manual_seed(0)
    model = load_model(open_store(), name, dtype="fp32", device="cpu")
    model.module.requires_grad_(False)
    if method is None:
        return model
    entry = catalog.load("methods", method)
    built: LoadedModel = entry(model, entry.configure({}))
    return built


def rows(model: LoadedModel, kind: Any, *examples: Example, overlong: Any = "error", **options: Any) -> list[PromptRow]:
    options = {"max_new_tokens": 10} | options
    dataset = Dataset("rows", kind, examples)
    template = PromptTemplate("Answer.", "Q: {input}")
    return prompt_rows(dataset, model, template, Limits(model.context_length, overlong), "ppo", **options)


def test_prompts_of_every_kind_of_data(tiny_decoder: str) -> None:
    model = loaded(tiny_decoder)
    assert model.renderer is not None
    chat = Example("1", (*user("2 + 2?"), Message("assistant", "4"), *user("and 1?"), Message("assistant", "5")))
    (row,) = rows(model, "chat", chat)
    assert row.messages == chat.messages[:-1] and (row.target, row.references) == ("5", ("5",))
    assert row.prompt == model.renderer.prompt_ids(chat.messages[:-1])
    assert row.length == len(row.prompt) + 10 and row.weight == 1
    (row,) = rows(model, "chat", Example("2", user("Hello?"), source="chat.jsonl:2"), copies=4)
    assert (row.messages, row.target, row.references) == (user("Hello?"), None, ())
    assert row.source == "chat.jsonl:2" and row.length == 4 * (len(row.prompt) + 10)
    question = Example("3", user("2 + 2?"), "4", references=("4", "four"))
    (row,) = rows(model, "question", question)
    assert row.messages == (Message("user", "Answer.\n\nQ: 2 + 2?"),) or "Q: 2 + 2?" in row.messages[-1].content
    assert (row.target, row.references, row.example) == ("4", ("4", "four"), question)
    (row,) = rows(model, "labelled", Example("4", user("late"), "delivery"))
    assert row.target == "delivery" and row.references == ("delivery",)
    (row,) = rows(
        model, "preference", Example("5", user("a?"), chosen=(Message("assistant", "b"),), rejected=(Message("assistant", "c"),))
    )  # fmt: skip
    assert row.messages == user("a?") and row.target is None


def test_prompts_that_cannot_be_answered(tiny_decoder: str, tiny_encoder: str) -> None:
    model = loaded(tiny_decoder)
    with pytest.raises(DataError, match=r"chat.jsonl:9: there is no prompt"):
        rows(model, "chat", Example("1", (Message("assistant", "4"),), source="chat.jsonl:9"))
    with pytest.raises(UnsupportedError, match="ppo needs data of kind chat or question or labelled or preference"):
        rows(model, "text", Example("1", user("a")))
    with pytest.raises(UnsupportedError, match="objective ppo samples answers from a decoder"):
        rows(loaded(tiny_encoder), "chat", Example("1", user("a")))
    long = Example("1", user("refund " * 600), source="chat.jsonl:1")
    with pytest.raises(DataError, match="longer than the model's context"):
        rows(model, "chat", long, Example("2", user("a")))
    (kept,) = rows(model, "chat", long, Example("2", user("a")), overlong="truncate")
    assert kept.messages == user("a")  # a prompt without its end would be another one


@pytest.mark.parametrize("method", ["lora", "full", "bitfit", "prompt"])
def test_the_reference_is_the_model_before_training(tiny_gpt2: str, method: str) -> None:
    ids = torch.tensor([[5, 6, 7]])
    plain = loaded(tiny_gpt2).module(input_ids=ids).logits.detach()
    model = loaded(tiny_gpt2, method)
    flags = {name: p.requires_grad for name, p in model.module.named_parameters()}
    reference = Reference(model)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.module.eval()
    moved = model.module(input_ids=ids).logits.detach()
    assert float((moved[:, -3:] - plain).abs().max()) > 1e-3
    with pytest.raises(ZeroDivisionError), reference.answering():
        torch.testing.assert_close(model.module(input_ids=ids).logits, plain, rtol=0, atol=1e-6)
        raise ZeroDivisionError
    assert torch.equal(model.module(input_ids=ids).logits, moved)
    assert flags == {name: p.requires_grad for name, p in model.module.named_parameters()}


def test_a_rollouts_seed_follows_from_run_step_and_purpose() -> None:
    assert Moment(3, 0, 100).seed == Moment(3, 0, 999).seed
    others = [Moment(4, 0, 100), Moment(3, 1, 100), Moment(3, 0, 100, training=False)]
    assert len({Moment(3, 0, 100).seed, *(moment.seed for moment in others)}) == 4
