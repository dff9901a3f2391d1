"""Distillation against the equation, worked out from separate plain forwards of both models; what it refuses, stores and resumes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.test_tune import settings, tensors, write_chats, write_tickets
from torch import Tensor

from luthier.core.catalog import load
from luthier.core.dataset import Dataset, Example
from luthier.core.errors import DataError, InputError, LuthierError, MismatchError, NotFoundError, UnsupportedError
from luthier.core.message import Message, user
from luthier.core.run import no_progress
from luthier.core.task import PromptTemplate
from luthier.models.load import LoadedModel, load_model
from luthier.models.pull import pull
from luthier.objectives import distill
from luthier.objectives._rows import Limits
from luthier.objectives._soft_targets import CHUNK
from luthier.store.artifacts import path_of
from luthier.store.database import open_store
from luthier.store.lineage import lineage
from luthier.store.models import find
from luthier.training.interrupt import Halt
from luthier.training.tune import TuneResult, tune

LABELS = ("billing", "delivery")
TEXTS = [("refund the deposit", 0), ("where is the parcel, and who is the courier", 1), ("gone", 1)]
PROMPT = PromptTemplate("Sort into {labels}.", "Message: {input}", LABELS)
LABELLED = Dataset(
    "t", "labelled", tuple(Example(str(i), user(t), LABELS[n], source=f"t.jsonl:{i}") for i, (t, n) in enumerate(TEXTS))
)
CHATS = Dataset(
    "talk",
    "chat",
    tuple(
        Example(
            str(i),
            (
                Message("user", "a parcel?"),
                Message("assistant", text),
                Message("user", "who?"),
                Message("assistant", "x"),
            ),
        )
        for i, text in enumerate(["it has arrived", "no; the courier does not answer " * 15, "0123"])
    ),
)


@pytest.fixture
def tickets(tmp_path: Path) -> Path:
    return write_tickets(tmp_path / "tickets.jsonl", 10)


def told(
    base: str, data: Path, objective: Mapping[str, Any] | str, method: Any = "lora", **more: Any
) -> dict[str, Any]:
    train = {"learning_rate": 1e-2, **more.pop("train", {})}
    return settings(base, data, method, **train) | {"objective": objective} | more


@pytest.fixture
def encoder_teacher(tiny_encoder: str, tickets: Path) -> str:
    return tune(told(tiny_encoder, tickets, "classify", name="teacher", train={"epochs": 4})).model.name


def other_decoder(tiny_path: Path, folder: Path, vocabulary: int = 0, kind: str = "llama") -> str:
    """A wider and deeper random decoder with the same tokenizer, pulled as ``big``."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(str(tiny_path))
    tokenizer.save_pretrained(str(folder))
    config = LlamaConfig.from_pretrained(str(tiny_path))
    config.hidden_size, config.num_hidden_layers, config.vocab_size = 48, 3, vocabulary or len(tokenizer)
    config.head_dim = 12
    torch.manual_seed(7)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():  # a random model of this size is sure of nothing
            parameter.mul_(3)
    model.save_pretrained(str(folder))
    return pull(f"file:{folder}", alias="big").name


@pytest.fixture
def decoder_teacher(tiny_decoder: str, tiny_decoder_path: Path, tmp_path: Path) -> str:
    return other_decoder(tiny_decoder_path, tmp_path / "big")


def named(name: str, labels: tuple[str, ...] = LABELS) -> LoadedModel:
    model = load_model(open_store(), name, dtype="fp32", device="cpu", labels=labels)
    model.labels = labels
    model.module.eval()
    return model


def prepared(model: LoadedModel, dataset: Dataset, **options: Any) -> tuple[list[Any], distill.Config]:
    config = distill.Config(**options)
    rows = distill.prepare(dataset, model, PROMPT, config, Limits(model.context_length))
    with torch.no_grad():
        distill.before(model, rows, config, no_progress)
    return rows, config


def apart(teacher: Tensor, student: Tensor, temperature: float, direction: str) -> Tensor:
    """KL of one row, term by term, in double precision."""
    p, q = (torch.exp(each.double() / temperature) for each in (teacher, student))
    p, q = p / p.sum(), q / q.sum()
    if direction == "reverse":
        p, q = q, p
    return (p * (p.log() - q.log())).sum()


def head_logits(model: LoadedModel, text: str) -> Tensor:
    inputs = model.tokenizer(text, return_tensors="pt")
    hidden = model.module.body(**{k: inputs[k] for k in ("input_ids", "attention_mask")}).last_hidden_state
    return model.module.head(hidden[0].mean(0))


def own_loss(scores: Tensor, right: int) -> Tensor:
    return -(scores.double().log_softmax(-1)[right])


@pytest.mark.parametrize(
    ("temperature", "alpha", "direction"), [(2.0, 0.5, "forward"), (5.0, 1.0, "forward"), (1.5, 0.3, "reverse")]
)
@pytest.mark.parametrize("labels", [LABELS, LABELS[::-1]])
def test_labels_of_an_encoder(
    tiny_encoder: str, encoder_teacher: str, labels: tuple[str, ...], temperature: float, alpha: float, direction: str
) -> None:
    """The teacher's labels may stand in another order than the student's."""
    torch.manual_seed(0)
    student, teacher = named(tiny_encoder, labels), named(encoder_teacher)
    student.module.requires_grad_(True)
    rows, config = prepared(
        student, LABELLED, teacher=encoder_teacher, temperature=temperature, alpha=alpha, direction=direction
    )
    found = distill.loss(student, distill.collate(rows, student), config)
    total = torch.zeros((), dtype=torch.float64)
    for text, right in TEXTS:
        ours = head_logits(student, text)
        theirs = head_logits(teacher, text).detach()[[LABELS.index(label) for label in labels]]
        total = total + alpha * temperature**2 * apart(theirs, ours, temperature, direction)
        total = total + (1 - alpha) * own_loss(ours, labels.index(LABELS[right]))
    assert float(found.value.detach()) == pytest.approx(float(total.detach()) / len(TEXTS), abs=1e-6)
    assert found.count == len(TEXTS)
    assert found.metrics["divergence"] > 1e-8
    slopes = torch.autograd.grad(total / len(TEXTS), student.module.head.weight)[0]
    found.value.backward()
    torch.testing.assert_close(student.module.head.weight.grad, slopes, rtol=1e-4, atol=1e-6)


def text_scores(model: LoadedModel, text: str) -> Tensor:
    """log p(label, end of turn | prompt), each from one plain forward."""
    assert model.renderer is not None
    prompt, scores = model.renderer.prompt_ids(PROMPT.messages(text)), []
    for label in LABELS:
        answer = model.renderer.continuation_ids(label, ends_turn=True)
        log_probs = model.module(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        scores.append(sum(log_probs[len(prompt) - 1 + i, token] for i, token in enumerate(answer)))
    return torch.stack(scores)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_labels_of_a_decoder(tiny_decoder: str, decoder_teacher: str, direction: str) -> None:
    student, teacher = named(tiny_decoder), named(decoder_teacher)
    options = {"teacher": decoder_teacher, "temperature": 3.0, "alpha": 0.6, "direction": direction}
    rows, config = prepared(student, LABELLED, generative_weight=0.5, **options)
    found = distill.loss(student, distill.collate(rows, student), config)
    total = 0.0
    with torch.no_grad():
        for text, right in TEXTS:
            ours, theirs = text_scores(student, text), text_scores(teacher, text)
            total += 0.6 * 9 * float(apart(theirs, ours, 3.0, direction))
            total += 0.4 * float(own_loss(ours, right) - 0.5 * ours[right].double())
    # sums of ten log-probabilities of about -6 each, in fp32, by two ways
    assert float(found.value.detach()) == pytest.approx(total / len(TEXTS), rel=1e-6)
    assert found.metrics["agreement"] in {0.0, 1 / 3, 2 / 3, 1.0} or found.metrics["agreement"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(("direction", "alpha"), [("forward", 0.5), ("forward", 1.0), ("reverse", 0.7)])
def test_tokens_of_a_chat(tiny_decoder: str, decoder_teacher: str, direction: str, alpha: float) -> None:
    """The teacher is wider and deeper; gradients of the whole model too, over more tokens than one piece holds."""
    student, teacher = named(tiny_decoder, ()), named(decoder_teacher, ())
    student.module.requires_grad_(True)
    rows, config = prepared(student, CHATS, teacher=decoder_teacher, temperature=2.0, alpha=alpha, direction=direction)
    assert sum(row.weight for row in rows) > CHUNK
    assert [tuple(row.said.shape) for row in rows] == [(row.weight, 48) for row in rows]
    total, count = torch.zeros((), dtype=torch.float64), 0
    assert student.renderer is not None
    for example, row in zip(CHATS.examples, rows, strict=True):
        whole = student.renderer.training_ids(example.messages)
        mask = [place for place, labelled in enumerate(whole.mask) if labelled]
        assert row.row.places == [place - 1 for place in mask]
        ids = torch.tensor([whole.ids])
        ours, theirs = student.module(input_ids=ids).logits[0], teacher.module(input_ids=ids).logits[0].detach()
        for place in mask:
            total = total + alpha * 4 * apart(theirs[place - 1], ours[place - 1], 2.0, direction)
            total = total + (1 - alpha) * own_loss(ours[place - 1], whole.ids[place])
            count += 1
    found = distill.loss(student, distill.collate(rows, student), config)
    assert found.count == count == sum(row.weight for row in rows)
    assert float(found.value.detach()) == pytest.approx(float(total.detach()) / count, abs=1e-6)
    parts = dict(student.module.named_parameters())
    wanted = torch.autograd.grad(total / count, list(parts.values()))
    (found.value * 1.0).backward()
    for (name, parameter), slope in zip(parts.items(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, slope, rtol=1e-3, atol=1e-6, msg=name)
    mixed = alpha * 4 * found.metrics["divergence"] + (1 - alpha) * found.metrics["cross_entropy"]
    assert mixed == pytest.approx(float(found.value.detach()), rel=1e-5)


def test_only_the_last_turn(tiny_decoder: str, decoder_teacher: str) -> None:
    every, _ = prepared(named(tiny_decoder, ()), CHATS, teacher=decoder_teacher)
    last, _ = prepared(named(tiny_decoder, ()), CHATS, teacher=decoder_teacher, turns="last")
    for one, other in zip(every, last, strict=True):
        assert 0 < other.weight < one.weight
        torch.testing.assert_close(other.said, one.said[-other.weight :])


def test_a_teacher_with_rows_for_more_tokens(tiny_decoder: str, tiny_decoder_path: Path, tmp_path: Path) -> None:
    student = named(tiny_decoder, ())
    size = student.module.config.vocab_size
    teacher = other_decoder(tiny_decoder_path, tmp_path / "big", vocabulary=size + 8)
    rows, config = prepared(student, CHATS, teacher=teacher, alpha=1.0, temperature=1.0)
    big = named(teacher, ())
    ids = torch.tensor([rows[0].row.ids])
    with torch.no_grad():
        ours, theirs = student.module(input_ids=ids).logits[0], big.module(input_ids=ids).logits[0][:, :size]
        wanted = sum(float(apart(theirs[p], ours[p], 1.0, "forward")) for p in rows[0].row.places)
        found = distill.loss(student, distill.collate(rows[:1], student), config)
    assert float(found.value.detach()) == pytest.approx(wanted / rows[0].weight, abs=1e-6)


def test_tokens_and_labels_of_an_encoder_decoder(tiny_t5: str, tiny_t5_path: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    AutoTokenizer.from_pretrained(str(tiny_t5_path)).save_pretrained(str(tmp_path / "big"))
    torch.manual_seed(9)
    T5ForConditionalGeneration(T5Config.from_pretrained(str(tiny_t5_path), num_layers=3)).save_pretrained(
        str(tmp_path / "big")
    )
    big = pull(f"file:{tmp_path / 'big'}", alias="big-t5").name
    student, teacher = named(tiny_t5), named(big)
    questions = Dataset("q", "question", tuple(Example(e.id, e.messages, e.target) for e in LABELLED.examples))
    rows, config = prepared(student, questions, teacher=big, alpha=1.0, temperature=2.0)
    total = 0.0
    for row in rows:
        shown = torch.tensor([[0, *row.row.target_ids[:-1]]])
        with torch.no_grad():
            ours, theirs = (
                m.module(input_ids=torch.tensor([row.row.source_ids]), decoder_input_ids=shown).logits[0]
                for m in (student, teacher)
            )
        total += sum(4 * float(apart(t, o, 2.0, "forward")) for t, o in zip(theirs, ours, strict=True))
    found = distill.loss(student, distill.collate(rows, student), config)
    assert float(found.value.detach()) == pytest.approx(total / sum(row.weight for row in rows), abs=1e-6)
    rows, config = prepared(student, LABELLED, teacher=big)
    assert rows[0].said.shape == (2,)
    assert distill.loss(student, distill.collate(rows, student), config).count == len(TEXTS)


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(tiny_decoder: str) -> None:
    student = named(tiny_decoder, ())
    rows, config = prepared(student, CHATS, teacher=tiny_decoder, alpha=1.0)
    found = distill.loss(student, distill.collate(rows, student), config)
    assert abs(float(found.value.detach())) < 1e-6


def test_bf16(tiny_decoder: str, decoder_teacher: str) -> None:
    student = load_model(open_store(), tiny_decoder, dtype="bf16", device="cpu")
    student.module.requires_grad_(True)
    rows, config = prepared(student, CHATS, teacher=decoder_teacher)
    assert rows[0].said.dtype == torch.bfloat16
    found = distill.loss(student, distill.collate(rows, student), config)
    found.value.backward()
    exact = named(tiny_decoder, ())
    wanted, config = prepared(exact, CHATS, teacher=decoder_teacher)
    assert float(found.value.detach()) == pytest.approx(
        float(distill.loss(exact, distill.collate(wanted, exact), config).value.detach()), rel=0.03
    )
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in student.module.parameters())


def test_a_frozen_body(tiny_encoder: str, encoder_teacher: str) -> None:
    """Features were computed once; the teacher still reads the texts."""
    student = named(tiny_encoder)
    student.module.requires_grad_(True)
    rows, config = prepared(student, LABELLED, teacher=encoder_teacher)
    expected = distill.loss(student, distill.collate(rows, student), config)
    student.module.body.requires_grad_(False)
    rows, config = prepared(student, LABELLED, teacher=encoder_teacher)
    assert [row.length for row in rows] == [1, 1, 1]
    torch.testing.assert_close(distill.loss(student, distill.collate(rows, student), config).value, expected.value)


# Through tune


@pytest.mark.parametrize("method", ["lora", "full", "linear_probe"])
def test_the_verb(tiny_encoder: str, encoder_teacher: str, tickets: Path, method: str) -> None:
    store = open_store()
    before = find(store, encoder_teacher).digest
    kept = {p.name: p.stat().st_mtime_ns for p in path_of(store, before).iterdir()}
    objective = {"name": "distill", "teacher": encoder_teacher, "alpha": 1.0}
    # 8 epochs: a linear probe moves slowly
    made = tune(told(tiny_encoder, tickets, objective, method, train={"epochs": 8}))
    losses = [record["divergence"] for record in metrics_of(made)]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert made.model.meta["objective"] == "distill"
    edges = {(edge.source.id, edge.relation) for edge in lineage(made.model.name).edges}
    assert (encoder_teacher, "teacher") in edges and (tiny_encoder, "base") in edges
    assert {p.name: p.stat().st_mtime_ns for p in path_of(store, before).iterdir()} == kept
    assert load_model(store, made.model.name, device="cpu").labels == LABELS


def metrics_of(made: TuneResult) -> list[Mapping[str, Any]]:
    from luthier.store import runs

    return list(runs.read_metrics(runs.folder(open_store(), made.run.id) / runs.METRICS))


def test_a_decoder_with_soft_prompts_and_a_chat(tiny_decoder: str, decoder_teacher: str, tmp_path: Path) -> None:
    chats = write_chats(tmp_path / "chats.jsonl")
    objective = {"name": "distill", "teacher": decoder_teacher}
    for method in ({"name": "prompt", "tokens": 4}, "lora"):
        made = tune(told(tiny_decoder, chats, objective, method))
        assert {"validation_divergence", "validation_cross_entropy", "validation_loss"} <= set(made.summary)


def test_another_teacher_of_the_same_name_is_other_work(tiny_encoder: str, encoder_teacher: str, tickets: Path) -> None:
    told_so = told(tiny_encoder, tickets, {"name": "distill", "teacher": encoder_teacher}, name="student")
    first = tune(told_so)
    assert tune(told_so).reused
    tune(told(tiny_encoder, tickets, "classify", name="teacher", train={"epochs": 1}), replace=True)
    again = tune(told_so, replace=True)
    assert not again.reused and again.model.digest != first.model.digest


def test_equal_seeds_and_a_resume_give_equal_weights(tiny_decoder: str, decoder_teacher: str, tmp_path: Path) -> None:
    chats = write_chats(tmp_path / "chats.jsonl")
    objective = {"name": "distill", "teacher": decoder_teacher}
    train = {"epochs": 4, "checkpoint_every": 1, "batch_size": 4}
    method = {"name": "lora", "dropout": 0.2}
    whole = tune(told(tiny_decoder, chats, objective, method, name="whole", train=train))
    twin = tune(told(tiny_decoder, chats, objective, method, name="twin", train=train))
    assert tensors(whole).keys() == tensors(twin).keys()
    assert all(torch.equal(tensor, tensors(twin)[name]) for name, tensor in tensors(whole).items())

    def stop(record: Mapping[str, Any]) -> None:
        if record["step"] == 4:
            raise Halt("enough")

    broken = told(tiny_decoder, chats, objective, method, name="broken", train=train)
    with pytest.raises(Halt):
        tune(broken, metrics=stop)
    started = []
    result = tune(broken, started=lambda start: started.append(start.resumed_at))
    assert started == [3] or started == [4]
    assert all(torch.equal(tensor, tensors(whole)[name]) for name, tensor in tensors(result).items())


# Refusals, all before a weight is read


def refused(kind: type[LuthierError], what: str, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("a weight was read")

    with monkeypatch.context() as patch, pytest.raises(kind, match=what):
        patch.setattr("luthier.models.load.load_folder", forbidden)
        tune(config)


def test_teachers_that_cannot_teach(
    tiny_encoder: str,
    tiny_decoder: str,
    encoder_teacher: str,
    tickets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def config(base: str, teacher: str, data: Path = tickets) -> dict[str, Any]:
        return told(base, data, {"name": "distill", "teacher": teacher})

    refused(NotFoundError, "'nobody' is not known", config(tiny_encoder, "nobody"), monkeypatch)
    refused(UnsupportedError, "architecture decoder, the student", config(tiny_encoder, tiny_decoder), monkeypatch)
    refused(UnsupportedError, "has no labels: an encoder", config(tiny_encoder, tiny_encoder), monkeypatch)
    others = write_tickets(tmp_path / "others.jsonl", 6, {"billing": "a b c d e", "harp": "f g h i j"})
    refused(MismatchError, "knows the labels 'billing', 'delivery'; the training data has 'billing', 'harp'",
            config(tiny_encoder, encoder_teacher, others), monkeypatch)  # fmt: skip
    with pytest.raises(InputError, match="objective distill"):
        tune(told(tiny_encoder, tickets, "distill"))


def test_another_tokenizer(
    tiny_encoder: str,
    tiny_encoder_path: Path,
    encoder_teacher: str,
    tickets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import shutil

    folder = tmp_path / "strange"
    shutil.copytree(tiny_encoder_path, folder)
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"the":', '"dhe":'))
    assert text != (folder / "tokenizer.json").read_text()
    strange = pull(f"file:{folder}", alias="strange").name
    objective = {"name": "distill", "teacher": encoder_teacher}
    refused(
        MismatchError,
        "have different tokenizers .* 2 of them not shared",
        told(strange, tickets, objective),
        monkeypatch,
    )


def test_another_prompt(tiny_decoder: str, tickets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = {"instruction": "One of {labels}."}
    tune(told(tiny_decoder, tickets, "classify", name="teacher", prompt=prompt, train={"epochs": 1}))
    objective = {"name": "distill", "teacher": "teacher"}
    refused(
        MismatchError,
        "another prompt: instruction 'One of {labels}.'",
        told(tiny_decoder, tickets, objective),
        monkeypatch,
    )
    assert tune(told(tiny_decoder, tickets, objective, prompt=prompt, train={"epochs": 1})).model.meta["labels"]


def test_rows_that_do_not_fit(
    tiny_encoder: str, tiny_decoder: str, decoder_teacher: str, encoder_teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = named(tiny_decoder, ())
    with pytest.raises(UnsupportedError, match="an encoder is distilled on labelled rows; talk is chat"):
        prepared(named(tiny_encoder), CHATS, teacher=encoder_teacher)
    with pytest.raises(InputError, match="generative_weight is for models that generate"):
        prepared(named(tiny_encoder), LABELLED, teacher=encoder_teacher, generative_weight=1.0)
    with pytest.raises(DataError, match="at least two labels"):
        prepared(named(tiny_encoder, ("billing",)), LABELLED, teacher=encoder_teacher)
    with pytest.raises(UnsupportedError, match="objective distill needs data of kind"):
        distill.prepare(Dataset("p", "preference", ()), student, PROMPT, distill.Config(teacher="x"), Limits(512))
    with monkeypatch.context() as patch, pytest.raises(DataError, match=r"takes 0 MB; 0 MB are free"):
        patch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000}))
        prepared(student, CHATS, teacher=decoder_teacher)
    rows = distill.prepare(CHATS, student, PROMPT, distill.Config(teacher=decoder_teacher), Limits(512))
    monkeypatch.setattr("luthier.objectives._teacher.load_model", lambda *a, **k: shortened(load_model(*a, **k)))
    with pytest.raises(DataError, match="reads 20 at most"):
        distill.before(student, rows, distill.Config(teacher=decoder_teacher), no_progress)


def shortened(model: LoadedModel) -> LoadedModel:
    model.context_length = 20
    return model


def test_the_catalogue_tells_of_it() -> None:
    entry = load("objectives", "distill")
    assert entry.module.DEFAULT_FOR == ()
    with pytest.raises(InputError, match="unknown key 'teachers'"):
        entry.configure({"teacher": "x", "teachers": "y"})
    for bad in ({"alpha": 0}, {"alpha": 1.1}, {"temperature": 0}, {"direction": "sideways"}):
        with pytest.raises(InputError):
            entry.configure({"teacher": "x", **bad})
