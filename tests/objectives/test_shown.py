"""What is trained, token by token, as the objectives' own batches say it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.objectives.preferences import pairs

from luthier.core import catalog
from luthier.core.dataset import Dataset, Example
from luthier.core.errors import UnsupportedError
from luthier.core.message import Message, user
from luthier.core.task import PromptTemplate
from luthier.models.load import LoadedModel
from luthier.models.shapes import load_shapes
from luthier.objectives._shown import Line, Shown, lines, same_places
from luthier.store.database import open_store
from luthier.store.models import find

TEXT = Dataset("corpus", "text", (Example("0", user("The parcel has not arrived yet."), source="corpus.jsonl:1"),))
CHAT = Dataset(
    "chat",
    "chat",
    (
        Example(
            "0",
            (*user("Refund?"), Message("assistant", "Yes."), *user("When?"), Message("assistant", "Today.")),
            source="chat.jsonl:1",
        ),
    ),
)


def found(name: str, objective: str, data: Dataset, **options: Any) -> tuple[LoadedModel, list[Line]]:
    """The lines of the first row, from a sketch without weights."""
    store, entry = open_store(), catalog.load("objectives", objective)
    model = load_shapes(store, find(store, name))
    _, first = next(lines(entry, data, model, PromptTemplate(), entry.configure(options)))
    return model, first


def text_of(model: LoadedModel, line: Line, *, asked: bool) -> str:
    out: str = model.tokenizer.decode(
        [each.wanted if asked else each.read for each in line if not asked or each.wanted is not None]
    )
    return out


def test_sft_asks_for_what_the_assistant_says_and_its_ends(tiny_decoder: str) -> None:
    model, (line,) = found(tiny_decoder, "sft", CHAT)
    assert text_of(model, line, asked=True) == "Yes.<|im_end|>Today.<|im_end|>"
    assert all(each.wanted in (None, each.read) for each in line)
    assert text_of(model, line, asked=False).startswith("<|im_start|>user\nRefund?<|im_end|>")


def test_sft_of_the_last_turn_asks_for_nothing_before_it(tiny_decoder: str) -> None:
    model, (line,) = found(tiny_decoder, "sft", CHAT, turns="last")
    assert text_of(model, line, asked=True) == "Today.<|im_end|>"


def test_an_encoder_decoder_shows_source_and_target(tiny_t5: str) -> None:
    model, (source, target) = found(tiny_t5, "sft", CHAT)
    assert all(each.wanted is None for each in source)
    assert [each.wanted for each in target] == [each.read for each in target]
    assert text_of(model, target, asked=True).startswith("Yes.")


def test_causal_lm_asks_for_all_but_the_first_token(tiny_decoder: str) -> None:
    _, (line,) = found(tiny_decoder, "causal_lm", TEXT)
    assert [each.wanted for each in line] == [None, *(each.read for each in line[1:])]


def test_masked_lm_asks_for_the_tokens_that_it_hid(tiny_encoder: str) -> None:
    model, (line,) = found(tiny_encoder, "masked_lm", TEXT, share=0.5, mask=1.0, random=0.0)
    whole = model.tokenizer("The parcel has not arrived yet.")["input_ids"]
    assert [each.read if each.wanted is None else each.wanted for each in line] == whole
    hidden = [each for each in line if each.wanted is not None]
    assert len(hidden) == round((len(whole) - 2) * 0.5)
    assert all(each.read == model.tokenizer.mask_token_id for each in hidden)


@pytest.mark.parametrize("objective", ["dpo", "orpo", "kto"])
def test_preferences_ask_for_the_answers(tiny_decoder: str, objective: str) -> None:
    model, answers = found(tiny_decoder, objective, pairs())
    said = [text_of(model, line, asked=True) for line in answers]
    both = ["With the courier.<|im_end|>", "No idea.<|im_end|>"]
    assert said == (both[:1] if objective == "kto" else both)


def test_places_count_through_the_rows() -> None:
    ids = torch.tensor([[5, 6], [7, 8]])
    assert same_places(ids, torch.tensor([1, 2]), torch.tensor([60, 70])) == [
        [Shown(5), Shown(6, 60)],
        [Shown(7, 70), Shown(8)],
    ]


def test_objectives_on_whole_texts_and_of_teachers_are_refused(tiny_decoder: str, tiny_encoder: str) -> None:
    with pytest.raises(UnsupportedError, match="objective reward has no loss on single tokens"):
        found(tiny_decoder, "reward", pairs())
    with pytest.raises(UnsupportedError, match="learns what its teacher says"):
        found(tiny_decoder, "distill", CHAT, teacher="big")


def test_tag_reads_the_first_token_of_each_word(tiny_encoder: str) -> None:
    annotated = Example("0", user("The parcels arrived."), '[{"type": "THING", "start": 4, "end": 11}]', source="a:1")
    model, (line,) = found(tiny_encoder, "tag", Dataset("a", "entities", (annotated,)))
    asked = [model.tokenizer.convert_ids_to_tokens(each.wanted) for each in line if each.wanted is not None]
    assert asked == ["The", "parcel", "arrived", "."] and len(line) == 7
