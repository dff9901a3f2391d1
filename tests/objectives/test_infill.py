"""Fill in the middle: the order of the pieces, token by token, how often, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.dataset import Dataset, Example
from luthier.core.errors import InputError, UnsupportedError
from luthier.core.message import user
from luthier.core.task import PromptTemplate
from luthier.models.load import LoadedModel, load_folder, load_model
from luthier.objectives import causal_lm
from luthier.objectives._documents import Document, Row
from luthier.objectives._rows import Limits
from luthier.objectives.infill import Config, collate, loss, prepare
from luthier.store.database import open_store
from luthier.store.models import find

MARKS = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
TEXT = "def area(w, h):\n    return w * h  # 面积 of a <|im_end|> box number "


def documents(count: int) -> Dataset:
    examples = (Example(str(i), user(f"{TEXT}{i}"), source=f"c.jsonl:{i + 1}") for i in range(count))
    return Dataset("corpus", "text", tuple(examples))


@pytest.fixture
def model(tiny_decoder: str, tiny_decoder_path: Path, tmp_path: Path) -> LoadedModel:
    """The tiny decoder with the three tokens."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(str(tiny_decoder_path))
    tokenizer.add_tokens(list(MARKS), special_tokens=True)
    torch.manual_seed(0)
    module = LlamaForCausalLM.from_pretrained(str(tiny_decoder_path))
    module.resize_token_embeddings(len(tokenizer))
    module.save_pretrained(str(tmp_path / "fim"))
    tokenizer.save_pretrained(str(tmp_path / "fim"))
    record = find(open_store(), tiny_decoder)
    return load_folder(tmp_path / "fim", record, record, dtype="fp32", device="cpu")


def told(model: LoadedModel, dataset: Dataset, limits: Limits | None = None, **options: Any) -> list[Document]:
    rows: list[Row] = prepare(dataset, model, PromptTemplate(), Config(**options), limits or Limits(512))
    found = [document for row in rows for document in row.documents]
    return sorted(found, key=lambda d: int(d.source.split(":")[1]))


def parts(model: LoadedModel, ids: list[int]) -> tuple[str, list[list[int]]]:
    """plain, psm or spm, and the pieces between the marks."""
    before, after, middle = model.tokenizer.convert_tokens_to_ids(list(MARKS))
    end = model.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert ids[-1] == end and end not in ids[:-1]
    if before not in ids:
        return "plain", [ids[:-1]]
    assert ids[0] == before and [ids.count(mark) for mark in (before, after, middle)] == [1, 1, 1]
    first, second = ids.index(after), ids.index(middle)
    pieces = [ids[1:first], ids[first + 1 : second], ids[second + 1 : -1]]
    return ("spm" if first == 1 else "psm"), pieces


def test_psm_and_spm_are_the_documents_in_another_order(model: LoadedModel) -> None:
    decode = model.tokenizer.decode
    cuts = set()
    for number, document in enumerate(told(model, documents(40), rate=1, spm=0)):
        order, (prefix, suffix, middle) = parts(model, document.ids)
        assert (order == "psm" or not prefix) and document.start == 1
        assert decode(prefix) + decode(middle) + decode(suffix) == f"{TEXT}{number}"
        for piece in (prefix, suffix, middle):  # each is tokenised on its own, so a cut may fall inside a token
            assert piece == model.tokenizer(decode(piece), split_special_tokens=True)["input_ids"]
        cuts.add((len(decode(prefix)), len(decode(middle))))
    assert len(cuts) > 30
    for number, document in enumerate(told(model, documents(40), rate=1, spm=1)):
        order, (nothing, suffix, rest) = parts(model, document.ids)
        assert order == "spm" and not nothing
        assert decode(rest) + decode(suffix) == f"{TEXT}{number}"


def test_rates(model: LoadedModel) -> None:
    orders = [parts(model, document.ids)[0] for document in told(model, documents(400))]
    assert 160 < orders.count("plain") < 240 and 70 < orders.count("psm") < 130 and 70 < orders.count("spm") < 130
    again = told(model, documents(400))
    assert [d.ids for d in again] == [d.ids for d in told(model, documents(400))]
    assert [d.ids for d in again] != [d.ids for d in told(model, documents(400), seed=1)]
    plain = prepare(documents(3), model, PromptTemplate(), Config(rate=0), Limits(512))
    assert plain == causal_lm.prepare(documents(3), model, PromptTemplate(), causal_lm.Config(), Limits(512))


def test_the_loss_is_that_of_transformers_document_by_document(model: LoadedModel) -> None:
    rows = prepare(documents(6), model, PromptTemplate(), Config(rate=1), Limits(512))
    found = loss(model, collate(rows, model), Config())
    assert len(rows) < 6
    total = 0.0
    for document in (document for row in rows for document in row.documents):
        ids = torch.tensor([document.ids])
        with torch.no_grad():
            total += float(model.module(input_ids=ids, labels=ids).loss) * (len(document.ids) - 1)
    assert float(found.value.detach()) == pytest.approx(total / found.count, abs=1e-6)
    assert found.count == sum(row.weight for row in rows)


def test_long_documents_are_cut_into_windows_first(model: LoadedModel) -> None:
    long = Dataset("long", "text", (Example("0", user(TEXT * 6), source="l.jsonl:1"),))
    found = told(model, long, length=40, rate=1)
    assert len(found) > 5 and all(len(d.ids) <= 40 for d in found)
    ordered = [parts(model, d.ids) for d in found]
    texts = []
    for order, pieces in ordered:
        one, two, three = (model.tokenizer.decode(p) for p in pieces)
        texts.append(one + three + two if order == "psm" else three + two)
    assert all(text.strip("\ufffd") in TEXT * 6 for text in texts)
    assert sum(len(text) for text in texts) > 0.9 * len(TEXT * 6)


def test_special_tokens(model: LoadedModel, tiny_decoder: str) -> None:
    named = told(model, documents(20), rate=1, prefix="<fim_middle>", suffix="<fim_suffix>", middle="<fim_prefix>")
    assert named[0].ids[0] == model.tokenizer.convert_tokens_to_ids("<fim_middle>")
    with pytest.raises(InputError, match=r"objective\.middle must be a token of the model's vocabulary; got None"):
        told(model, documents(1), prefix="<fim_prefix>", suffix="<fim_suffix>")
    with pytest.raises(InputError, match=r"objective\.suffix must be a token.*got '<nope>'"):
        told(model, documents(1), prefix="<fim_prefix>", suffix="<nope>", middle="<fim_middle>")
    plain = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
    with pytest.raises(UnsupportedError, match="the tokenizer of tiny-decoder has none that are known"):
        told(plain, documents(1))
