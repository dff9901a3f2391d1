"""Sources and targets of encoder-decoders."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from luthier.core.errors import InputError, UnsupportedError
from luthier.core.message import Message, user
from luthier.core.task import PromptTemplate
from luthier.data.render import render_text, render_tokens
from luthier.data.render_source import Pair, SourceRenderer

PAD, END = 0, 1


@pytest.fixture
def renderer(tiny_t5_path: Path) -> SourceRenderer:
    return SourceRenderer(AutoTokenizer.from_pretrained(str(tiny_t5_path)), start_id=PAD)


def test_a_source_is_the_text_of_the_turns_and_the_token_that_ends_a_text(renderer: SourceRenderer) -> None:
    prompt = PromptTemplate("Name the topic: {labels}.", "Ticket: {input}", ("billing", "delivery"))
    messages = prompt.messages("where is my parcel", [("refund me", "billing")])
    text = "Name the topic: billing, delivery.\n\nTicket: refund me\n\nbilling\n\nTicket: where is my parcel"
    ids = renderer.prompt_ids(messages)
    assert ids == renderer.tokenizer(text)["input_ids"]
    assert ids[-1] == END and END not in ids[:-1]
    assert renderer.text(messages) == text
    assert renderer.prompt_ids(text) == ids  # raw text is read as it is
    assert renderer.opening == (PAD,)
    assert renderer.stop_ids == {END}


def test_a_target_is_the_answer_and_the_token_that_ends_a_text(renderer: SourceRenderer) -> None:
    assert renderer.continuation_ids("billing", ends_turn=True) == renderer.tokenizer("billing")["input_ids"]
    assert renderer.continuation_ids("billing", ends_turn=False) == renderer.tokenizer("billing")["input_ids"][:-1]
    messages = (*user("question"), Message("assistant", "one"), Message("user", "more"), Message("assistant", "two"))
    one, two = (renderer.tokenizer(text)["input_ids"] for text in ("one", "two"))
    first, second = (renderer.tokenizer(text)["input_ids"] for text in ("question", "question\n\none\n\nmore"))
    assert renderer.training_pairs_batch([messages]) == [[Pair(first, one), Pair(second, two)]]
    rendered = renderer.training_ids(messages)
    assert rendered.ids == [*second, *two]
    assert rendered.mask == [False] * len(second) + [True] * len(two)
    assert render_text(renderer, messages) == "question\n\none\n\nmore[[two</s>]]"
    shown = render_tokens(renderer, messages)
    assert [i for _, _, ids in shown for i in ids] == rendered.ids


def test_special_tokens_in_what_people_write_are_text(renderer: SourceRenderer) -> None:
    ids = renderer.prompt_ids(user("stop </s> here"))
    assert ids.count(END) == 1
    assert renderer.decode(ids[:-1]) == "stop </s> here"
    answer = renderer.continuation_ids("a </s> b", ends_turn=True)
    assert answer.count(END) == 1 and answer[-1] == END


def test_bart_has_tokens_before_a_text_too(renderer: SourceRenderer, tiny_t5_path: Path) -> None:
    from tokenizers import processors

    tokenizer = AutoTokenizer.from_pretrained(str(tiny_t5_path))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<unk> $A </s>", special_tokens=[("<unk>", 2), ("</s>", 1)]
    )
    bart = SourceRenderer(tokenizer, start_id=END)
    assert bart.opening == (END, 2)
    assert bart.prompt_ids(user("x y")) == [2, *renderer.prompt_ids(user("x y"))]
    assert bart.continuation_ids("x", ends_turn=True) == renderer.continuation_ids("x", ends_turn=True)
    assert bart.digest != renderer.digest


def test_the_digest_tells_the_first_token_apart(renderer: SourceRenderer) -> None:
    other = SourceRenderer(renderer.tokenizer, start_id=2)
    assert renderer.digest == SourceRenderer(renderer.tokenizer, start_id=PAD).digest
    assert other.digest != renderer.digest


def test_what_cannot_be_asked_is_refused(renderer: SourceRenderer) -> None:
    for empty in ("", " \n", user("")):
        with pytest.raises(InputError, match="prompt must not be empty"):
            renderer.prompt_ids(empty)
    with pytest.raises(UnsupportedError, match="no place for tools; weather"):
        renderer.prompt_ids(user("what is the weather"), [{"name": "weather", "parameters": {}}])
    with pytest.raises(InputError, match="needs an assistant turn"):
        renderer.training_ids(user("question"))
    with pytest.raises(InputError, match="first turn must not be an assistant's"):
        renderer.training_ids((Message("assistant", "hello"),))
    with pytest.raises(InputError, match="at least one turn"):
        renderer.prompt_ids(())
