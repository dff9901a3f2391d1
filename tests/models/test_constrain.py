"""Constrained decoding, followed with random tokens: what may be drawn always makes a text of the asked form."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import jsonschema
import pytest
import torch

from luthier.core.engine import Constraint
from luthier.core.errors import EngineError, InputError, UnsupportedError
from luthier.data.render import Renderer
from luthier.models.constrain import Follower, follower
from luthier.models.load import load_renderer


@pytest.fixture(scope="module")
def renderer(tiny_decoder_path: Path) -> Renderer:
    return load_renderer(tiny_decoder_path)


def feed(renderer: Renderer, constraint: Constraint, text: str) -> Follower | None:
    """A follower that has read ``text``, or None when the text is refused on the way."""
    at = follower(renderer, constraint)
    try:
        for token in renderer.plain_ids(text):
            at.take(token)
    except EngineError:
        return None
    return at


def accepts(renderer: Renderer, constraint: Constraint, text: str) -> bool:
    at = feed(renderer, constraint, text)
    return at is not None and at.accepts


def drawn(renderer: Renderer, constraint: Constraint, seed: int, limit: int = 400) -> str | None:
    """A text of uniformly drawn tokens (None: cut by the limit)."""
    chance = random.Random(seed)
    at = follower(renderer, constraint)
    ids: list[int] = []
    while not at.done and len(ids) < limit:
        logits = torch.zeros(len(renderer.tokenizer) + 3)
        at.mask(logits)
        assert torch.isinf(logits[-3:]).all()
        possible = torch.isfinite(logits).nonzero().flatten().tolist()
        stops = renderer.stop_ids.intersection(possible)
        token = next(iter(stops)) if stops and chance.random() < 0.5 else chance.choice(possible)
        at.take(token)
        ids += [] if token in renderer.stop_ids else [token]
    return renderer.decode(ids) if at.done else None


SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": -3, "maximum": 12}, "s": {"type": "string", "maxLength": 3}},
    "required": ["n"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "constraint, valid",
    [
        (Constraint("json_schema", json.dumps(SCHEMA)), lambda t: not jsonschema.validate(json.loads(t), SCHEMA)),
        (Constraint("regex", "(ab|cd)+-[0-9]{2,4}"), lambda t: bool(re.fullmatch("(ab|cd)+-[0-9]{2,4}", t))),
        (Constraint("choice", '["yes", "no", "yes, but \\u4f60\\n\\"so\\""]'), {"yes", "no", 'yes, but 你\n"so"'}.__contains__),
        (Constraint("grammar", 'root ::= pair ("," pair)*\npair ::= "(" [0-9]+ "|" root? ")"'), lambda t: t.count("(") == t.count(")") > 0),
    ],
    ids=lambda value: value.kind if isinstance(value, Constraint) else "",
)  # fmt: skip
def test_texts_of_random_tokens_have_the_form(renderer: Renderer, constraint: Constraint, valid: object) -> None:
    texts = [drawn(renderer, constraint, seed) for seed in range(30)]
    whole = [text for text in texts if text is not None]
    assert len(whole) >= 20
    assert all(valid(text) for text in whole)  # type: ignore[operator]


def test_any_json_object_is_accepted_and_nothing_else(renderer: Renderer) -> None:
    asked = Constraint("json")
    for text in ("{}", '{"a": [1, -2.5e3, "\\u0001 \\" 你"], "b": {"c": null}}', '{"a":true,"b":false}'):
        assert accepts(renderer, asked, text), text
    for text in ("[]", "1", " {}", '{"a": 01}', "{'a': 1}", '{"a":   1}', '{"a": 1,}', '{"a": 1'):
        assert not accepts(renderer, asked, text), text


def test_stop_ids_are_allowed_exactly_where_the_text_may_end(renderer: Renderer) -> None:
    asked = Constraint("regex", "ab*")
    at = follower(renderer, asked)
    assert not any(at.allowed()[i] for i in renderer.stop_ids)
    with pytest.raises(EngineError, match="not allowed"):
        at.copy().take(next(iter(renderer.stop_ids)))
    (token,) = renderer.continuation_ids("a", ends_turn=False)
    at.take(token)
    assert at.accepts and not at.done and all(at.allowed()[i] for i in renderer.stop_ids)
    other = at.copy()
    at.take(next(iter(renderer.stop_ids)))
    assert at.done and not other.done


def test_every_stop_id_ends_a_text(tiny_decoder_path: Path) -> None:
    several = Renderer(load_renderer(tiny_decoder_path).tokenizer, stop_ids=(0,))
    assert len(several.stop_ids) > 1
    for stop in several.stop_ids:
        at = feed(several, Constraint("regex", "ab*"), "ab")
        assert at is not None and at.allowed()[stop]
        at.take(stop)
        assert at.done


def test_a_text_that_nothing_can_follow_is_done_without_a_stop_token(renderer: Renderer) -> None:
    at = feed(renderer, Constraint("choice", '["refund"]'), "refund")
    assert at is not None and at.done


def test_special_tokens_never_stand_in_a_text(renderer: Renderer) -> None:
    special = {i for i, token in renderer.tokenizer.added_tokens_decoder.items() if token.special} - renderer.stop_ids
    at = follower(renderer, Constraint("regex", "(?s).*"))
    assert special and not any(at.allowed()[i] for i in special)
    letters = feed(renderer, Constraint("regex", "<\\|im_start\\|>"), "<|im_start|>")
    assert letters is not None and letters.done  # as letters, which are no markup


def test_a_follower_begins_anew_for_every_answer(renderer: Renderer) -> None:
    asked = Constraint("choice", '["a", "b"]')
    assert feed(renderer, asked, "a") is not None
    assert accepts(renderer, asked, "b")


@pytest.mark.parametrize(
    "constraint, message",
    [
        (Constraint("json_schema", "{"), "not JSON"),
        (Constraint("json_schema", "[1]"), "must be an object"),
        (Constraint("json_schema", '{"properties": {"a": {"type": "nothing"}}}'), "properties/a/type"),
        (Constraint("json_schema", '{"type": "object", "not": {}}'), "not"),
        (Constraint("json_schema", '{"$ref": "http://127.0.0.1:9/schema"}'), "127.0.0.1"),
        (Constraint("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}'), "minimum"),
        (Constraint("json_schema", '{"type": "string", "format": "stamp"}'), "stamp"),
        (Constraint("json_schema", '{"oneOf": [{"type": "integer"}, {"type": "number"}]}'), "oneOf"),
        (Constraint("json_schema", '{"a":' * 5000 + "1" + "}" * 5000), "deep"),
        (Constraint("regex", "a("), "regex"),
        (Constraint("regex", "(?:" * 5000 + "a" + ")" * 5000), "regex"),
        (Constraint("regex", "a" * 300_000), "200,000"),
        (Constraint("choice", '{"a": 1}'), "JSON list"),
        (Constraint("choice", "[]"), "at least one"),
        (Constraint("choice", "[1]"), "JSON list"),
        (Constraint("grammar", "root = 1"), "GBNF"),
        (Constraint("grammar", "root ::= other"), "other"),
        (Constraint("grammar", 'other ::= "a"'), "root"),
        (Constraint("grammar", 'root ::= ' + "(" * 5000 + '"a"' + ")" * 5000), "deep"),
    ],
    ids=lambda value: value.value[:24] if isinstance(value, Constraint) else "",
)  # fmt: skip
def test_what_cannot_be_held_is_refused_by_name(renderer: Renderer, constraint: Constraint, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        follower(renderer, constraint)


def test_a_vocabulary_of_unknown_bytes_is_refused(tiny_encoder_path: Path) -> None:
    from transformers import AutoTokenizer

    words = Renderer(AutoTokenizer.from_pretrained(str(tiny_encoder_path)), stop_ids=(3,))
    with pytest.raises(UnsupportedError, match="byte-level"):
        follower(words, Constraint("json"))
