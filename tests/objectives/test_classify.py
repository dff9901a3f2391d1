"""Classification on encoders and decoders, against separate forwards and worked-out losses."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from luthier.core.dataset import Dataset, Example
from luthier.core.errors import DataError, InputError, UnsupportedError
from luthier.core.message import user
from luthier.core.task import PromptTemplate
from luthier.models.load import LoadedModel, load_model
from luthier.objectives._rows import Limits
from luthier.objectives.classify import Config, collate, loss, prepare
from luthier.store.database import open_store

LABELS = ("billing", "delivery", "lost violin")
TEXTS = [
    ("Please refund the deposit for the violin.", "billing"),
    ("The parcel has not arrived and the courier does not answer.", "delivery"),
    ("My violin was in it.", "lost violin"),
    ("0123", "billing"),
    ("我的包裹还没有到,请帮我查一下。", "delivery"),
]
PROMPT = PromptTemplate("Sort the message into one of: {labels}", "Message: {input}", LABELS)


def tickets(texts: list[tuple[str, str]] = TEXTS) -> Dataset:
    rows = [
        Example(str(i), user(text), label, source=f"tickets.jsonl:{i + 1}") for i, (text, label) in enumerate(texts)
    ]
    return Dataset("tickets", "labelled", tuple(rows))


def named(name: str, labels: tuple[str, ...] = LABELS) -> LoadedModel:
    model = load_model(open_store(), name, dtype="fp32", device="cpu", labels=labels)
    model.labels = labels
    model.module.eval()
    return model


@pytest.fixture
def decoder(tiny_decoder: str) -> LoadedModel:
    return named(tiny_decoder)


@pytest.fixture
def encoder(tiny_encoder: str) -> LoadedModel:
    return named(tiny_encoder)


def label_scores(model: LoadedModel, text: str) -> torch.Tensor:
    """log p(label, end of turn | prompt), each from one plain forward."""
    assert model.renderer is not None
    prompt = model.renderer.prompt_ids(PROMPT.messages(text))
    scores = []
    for label in LABELS:
        answer = model.renderer.continuation_ids(label, ends_turn=True)
        log_probs = model.module(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        scores.append(torch.stack([log_probs[len(prompt) - 1 + i, token] for i, token in enumerate(answer)]).sum())
    return torch.stack(scores)


@pytest.mark.parametrize(("weight", "smoothing"), [(0.0, 0.0), (0.7, 0.0), (1.0, 0.1)])
def test_decoder_loss_and_gradients(decoder: LoadedModel, weight: float, smoothing: float) -> None:
    decoder.module.requires_grad_(True)
    scores = torch.stack([label_scores(decoder, text) for text, _ in TEXTS])
    right = torch.tensor([LABELS.index(label) for _, label in TEXTS])
    ranking = F.cross_entropy(scores, right, label_smoothing=smoothing)
    expected = ranking + weight * -scores[range(len(TEXTS)), right].mean()
    expected.backward()
    wanted = {name: p.grad.clone() for name, p in decoder.module.named_parameters()}
    decoder.module.zero_grad()
    config = Config(generative_weight=weight, label_smoothing=smoothing)
    rows = prepare(tickets(), decoder, PROMPT, config, Limits(512))
    found = loss(decoder, collate(rows, decoder), config)
    found.value.backward()
    assert found.count == len(TEXTS)
    assert found.metrics["accuracy"] == (scores.argmax(1) == right).float().mean().item()
    torch.testing.assert_close(found.value, expected, rtol=1e-5, atol=1e-5)
    for name, parameter in decoder.module.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-3, atol=1e-5)


def test_encoder_loss_and_gradients(encoder: LoadedModel) -> None:
    encoder.module.requires_grad_(True)
    logits = []
    for text, _ in TEXTS:
        inputs = encoder.tokenizer(text, return_tensors="pt")
        hidden = encoder.module.body(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).last_hidden_state
        logits.append(encoder.module.head(hidden[0].mean(0)))
    right = torch.tensor([LABELS.index(label) for _, label in TEXTS])
    expected = F.cross_entropy(torch.stack(logits), right, label_smoothing=0.1)
    expected.backward()
    wanted = {name: p.grad.clone() for name, p in encoder.module.named_parameters()}
    encoder.module.zero_grad()
    config = Config(label_smoothing=0.1)
    rows = prepare(tickets(), encoder, PROMPT, config, Limits(128))
    assert [row.length for row in rows] == [len(encoder.tokenizer(text)["input_ids"]) for text, _ in TEXTS]
    found = loss(encoder, collate(rows, encoder), config)
    found.value.backward()
    torch.testing.assert_close(found.value, expected, rtol=1e-5, atol=1e-6)
    for name, parameter in encoder.module.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-3, atol=1e-6)


def test_a_frozen_body_is_computed_once_with_the_same_loss(encoder: LoadedModel) -> None:
    encoder.module.requires_grad_(True)
    live = prepare(tickets(), encoder, PROMPT, Config(), Limits(128))
    expected = loss(encoder, collate(live, encoder), Config())
    encoder.module.body.requires_grad_(False)
    calls = []
    encoder.module.body.register_forward_hook(lambda *_: calls.append(1))
    rows = prepare(tickets(), encoder, PROMPT, Config(), Limits(128))
    computed = len(calls)
    assert computed >= 1
    for _ in range(3):
        found = loss(encoder, collate(rows, encoder), Config())
    assert len(calls) == computed
    torch.testing.assert_close(found.value, expected.value, rtol=1e-5, atol=1e-6)
    found.value.backward()
    assert encoder.module.head.weight.grad is not None
    assert all(row.length == 1 for row in rows)


def test_one_class_is_refused(encoder: LoadedModel) -> None:
    encoder.labels = ("billing",)
    with pytest.raises(DataError, match="at least two labels; tickets has 'billing'"):
        prepare(tickets(), encoder, PROMPT, Config(), Limits(128))


def test_a_label_unseen_in_training_is_refused_with_its_row(decoder: LoadedModel) -> None:
    with pytest.raises(DataError, match=r"'harp' does not occur in training \(tickets\.jsonl:2\)"):
        prepare(tickets([TEXTS[0], ("x", "harp")]), decoder, PROMPT, Config(), Limits(512))


def test_labels_that_are_the_same_tokens_are_refused(decoder: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(decoder.renderer), "continuation_ids", lambda self, text, ends_turn: [5, 2])
    with pytest.raises(DataError, match="'billing' and 'delivery' are the same to the model"):
        prepare(tickets(), decoder, PROMPT, Config(), Limits(512))


def test_an_option_that_an_encoder_cannot_use_is_refused(encoder: LoadedModel) -> None:
    with pytest.raises(InputError, match="generative_weight is for models that generate"):
        prepare(tickets(), encoder, PROMPT, Config(generative_weight=0.5), Limits(128))


def test_chats_are_refused(decoder: LoadedModel) -> None:
    with pytest.raises(UnsupportedError, match="kind labelled; talk is chat"):
        prepare(Dataset("talk", "chat", ()), decoder, PROMPT, Config(), Limits(512))


@pytest.mark.parametrize("which", ["decoder", "encoder"])
def test_overlong_rows(which: str, request: pytest.FixtureRequest) -> None:
    model: LoadedModel = request.getfixturevalue(which)
    whole = prepare(tickets(), model, PROMPT, Config(), Limits(512))
    most = 90 if which == "decoder" else 12
    with pytest.raises(DataError, match=rf"longer than the model's context of {most} tokens"):
        prepare(tickets(), model, PROMPT, Config(), Limits(most))
    dropping = Limits(most, "drop")
    kept = prepare(tickets(), model, PROMPT, Config(), dropping)
    assert 0 < len(kept) == len(whole) - len(dropping.dropped) < len(whole)
    cutting = Limits(most, "truncate")
    cut = prepare(tickets(), model, PROMPT, Config(), cutting)
    assert len(cut) == len(whole)
    assert len(cutting.truncated) == len(dropping.dropped)
    if which == "encoder":
        assert max(row.length for row in cut) == most
        assert all(row.ids[-1] == model.tokenizer.sep_token_id for row in cut)
    else:  # the instruction and the opening of the answer are whole; only the user's text is shorter
        longest = max(map(len, cut[0].answers))
        assert all(len(row.prompt) + longest <= most for row in cut)
        end = cut[3].prompt[-6:]
        assert all(row.prompt[-6:] == end for row in cut)


def test_a_near_perfect_head_has_a_loss_near_zero(encoder: LoadedModel) -> None:
    with torch.no_grad():
        encoder.module.head.weight.zero_()
        encoder.module.head.bias.copy_(torch.tensor([50.0, 0.0, 0.0]))
    rows = prepare(tickets([TEXTS[0], TEXTS[3]]), encoder, PROMPT, Config(), Limits(128))
    found = loss(encoder, collate(rows, encoder), Config())
    assert found.metrics["accuracy"] == 1.0
    assert math.isclose(found.value.item(), 0.0, abs_tol=1e-6)


@pytest.mark.parametrize("rows", [1, 5])
def test_the_auxiliary_language_model_loss_is_transformers(decoder: LoadedModel, rows: int) -> None:
    """L3 = L2 + lambda L1 (Radford et al. 2018, eq. 5): L1 of each text from a plain forward of its prompt, labels at the text alone."""
    decoder.module.requires_grad_(True)
    assert decoder.renderer is not None
    language = []
    for text, _ in TEXTS[:rows]:
        prompt = decoder.renderer.prompt_ids(PROMPT.messages(text))
        written = decoder.tokenizer.decode(prompt)
        begin, end = written.rindex(text), written.rindex(text) + len(text)
        offsets = decoder.tokenizer(written, return_offsets_mapping=True)["offset_mapping"]
        labels = [t if s < end and begin < e else -100 for t, (s, e) in zip(prompt, offsets, strict=True)]
        assert decoder.tokenizer.decode([token for token in labels if token >= 0]).strip() == text.strip()
        language.append(decoder.module(input_ids=torch.tensor([prompt]), labels=torch.tensor([labels])).loss)
    auxiliary = torch.stack(language).mean()
    plain, config = Config(generative_weight=0.3), Config(generative_weight=0.3, lm_weight=0.5)
    data = tickets(TEXTS[:rows])
    supervised = loss(decoder, collate(prepare(data, decoder, PROMPT, plain, Limits(512)), decoder), plain)
    expected = supervised.value + 0.5 * auxiliary
    expected.backward()
    wanted = {name: p.grad.clone() for name, p in decoder.module.named_parameters()}
    decoder.module.zero_grad()
    found = loss(decoder, collate(prepare(data, decoder, PROMPT, config, Limits(512)), decoder), config)
    found.value.backward()
    assert found.metrics["lm_loss"] == pytest.approx(float(auxiliary.detach()), abs=1e-6)
    assert float(found.value.detach()) == pytest.approx(float(expected.detach()), abs=1e-6)
    for name, parameter in decoder.module.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-6)
    assert "lm_loss" not in supervised.metrics


def test_the_auxiliary_loss_is_of_decoders(encoder: LoadedModel) -> None:
    with pytest.raises(InputError, match="lm_weight is for decoders"):
        prepare(tickets(), encoder, PROMPT, Config(lm_weight=0.5), Limits(128))


def test_a_setting_that_came_later_changes_no_key_at_its_default() -> None:
    from luthier.core import catalog
    from luthier.training.part import Part

    entry = catalog.load("objectives", "classify")
    assert Part(entry, entry.configure()).as_dict() == Part(entry, entry.configure({"lm_weight": 0.0})).as_dict()
    assert "lm_weight" not in Part(entry, entry.configure()).as_dict()["config"]
    assert Part(entry, entry.configure({"lm_weight": 0.5})).as_dict()["config"]["lm_weight"] == 0.5
