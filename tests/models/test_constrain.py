"""Constrained decoding, followed with random tokens: what may be drawn always makes a text of the asked form."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import jsonschema
import pytest
import torch

from luthier.core.engine import Constraint, Sampling
from luthier.core.errors import EngineError, InputError, UnsupportedError
from luthier.core.message import Tool
from luthier.data.call_form import call_form
from luthier.data.render import Renderer
from luthier.data.tools import read_tool_calls, tool_constraint
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


def drawn(
    renderer: Renderer, constraint: Constraint, seed: int, limit: int = 400, keep: tuple[str, ...] = ()
) -> str | None:
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
    return renderer.decode(ids, keep=keep) if at.done else None


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
        (Constraint("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}'), "no value follows it"),
        (Constraint("json_schema", '{"type": "string", "format": "stamp"}'), "stamp"),
        (Constraint("json_schema", '{"oneOf": [{"type": "integer"}, {"type": "number"}]}'), "oneOf"),
        (Constraint("json_schema", '{"a":' * 5000 + "1" + "}" * 5000), "recursion"),
        (Constraint("regex", "a("), "pattern 'a('"),
        (Constraint("regex", "(?:" * 5000 + "a" + ")" * 5000), "nested too deeply"),
        (Constraint("regex", "(?=a)b"), "looking ahead"),
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


# ---- calls of tools

TRACK = Tool(
    "track",
    parameters='{"type": "object", "properties": {"id": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["id"], '
    '"additionalProperties": false}',
    strict=True,
)
REFUND = Tool(
    "refund",
    parameters='{"properties": {"all": {"type": "boolean"}}, "additionalProperties": false, "not": {"minProperties": 9}}',
)
FORMS = ["hermes", "llama", "mistral", "named", "fenced", "plain"]


@pytest.fixture(scope="module")
def callers(tiny_decoder_path: Path, tool_templates: dict[str, str | None]) -> dict[str, Renderer]:
    tokenizer = load_renderer(tiny_decoder_path).tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]", "<|call|>", "<|args|>"]})
    return {name: Renderer(tokenizer, template=tool_templates[name]) for name in FORMS}


def answers(renderer: Renderer, sampling: Sampling, count: int = 15) -> list[str]:
    asked = tool_constraint(renderer, sampling)
    assert asked is not None
    texts = [drawn(renderer, asked, seed, keep=call_form(renderer).tokens) for seed in range(count)]
    found = [text for text in texts if text is not None]
    assert len(found) > count / 2
    return found


@pytest.mark.parametrize("form", FORMS)
def test_a_forced_call_is_read_back_with_arguments_that_follow_the_schema(
    callers: dict[str, Renderer], form: str
) -> None:
    renderer = callers[form]
    names: set[str] = set()
    for text in answers(renderer, Sampling(tools=(TRACK, REFUND), tool_choice="required")):
        rest, calls = read_tool_calls(renderer, text, ("track", "refund"))
        assert rest == "" and calls
        for call in calls:
            jsonschema.validate(
                json.loads(call.arguments), json.loads((TRACK if call.name == "track" else REFUND).parameters)
            )
        names |= {call.name for call in calls}
    assert names == {"track", "refund"}


@pytest.mark.parametrize("form", FORMS)
def test_a_named_tool_is_called_once(callers: dict[str, Renderer], form: str) -> None:
    for text in answers(callers[form], Sampling(tools=(TRACK, REFUND), tool_choice="refund")):
        rest, calls = read_tool_calls(callers[form], text, ("track", "refund"))
        assert (rest, [call.name for call in calls]) == ("", ["refund"])


@pytest.mark.parametrize("form", FORMS)
def test_one_call_when_several_are_not_wanted(callers: dict[str, Renderer], form: str) -> None:
    asked = Sampling(tools=(TRACK, REFUND), tool_choice="required", parallel_tool_calls=False)
    assert all(len(read_tool_calls(callers[form], text)[1]) == 1 for text in answers(callers[form], asked))


@pytest.mark.parametrize("form", FORMS)
def test_strict_leaves_text_free_and_calls_right(callers: dict[str, Renderer], form: str) -> None:
    renderer = callers[form]
    asked = tool_constraint(renderer, Sampling(tools=(TRACK,)))
    assert asked is not None
    assert accepts(renderer, asked, "It is in Bremen. 好的")
    assert accepts(renderer, asked, "")
    assert not accepts(renderer, asked, '{"name": "track", "arguments": {"id": -1}}')
    form_ = call_form(renderer)
    said = f'{form_.opening}track{form_.middle}{{"id": 7}}{form_.closing}'

    def follow(text: str) -> Follower:
        at = follower(renderer, asked)
        for token in encoded(renderer, text):
            at.take(token)
        return at

    assert follow(said).accepts
    with pytest.raises(EngineError):
        follow(said.replace("7", "-7"))
    if form_.begin:
        assert follow(f"I look.\n{said}").accepts
        with pytest.raises(EngineError):
            follow(f"I look.\n{said.replace('7', '-7')}")


def encoded(renderer: Renderer, text: str) -> list[int]:
    """Ids of ``text`` with the special tokens of calls as such."""
    return list(renderer.tokenizer(text, add_special_tokens=False)["input_ids"])


def test_without_strict_nothing_is_forced(callers: dict[str, Renderer]) -> None:
    for sampling in (
        Sampling(),
        Sampling(tools=(REFUND,)),
        Sampling(tools=(TRACK,), tool_choice="none"),
    ):
        assert tool_constraint(callers["hermes"], sampling) is None


def test_tools_that_cannot_be_forced_are_refused(
    callers: dict[str, Renderer], tiny_decoder_path: Path, tool_templates: dict[str, str | None]
) -> None:
    quoted = Renderer(load_renderer(tiny_decoder_path).tokenizer, template=tool_templates["quoted"])
    with pytest.raises(UnsupportedError, match="quoted"):
        tool_constraint(quoted, Sampling(tools=(TRACK,)))
    for parameters, message in (
        ("{", "not JSON"),
        ("[]", "must be the JSON schema of an object"),
        ('{"type": "string"}', "of an object"),
    ):
        with pytest.raises(InputError, match=message):
            tool_constraint(callers["hermes"], Sampling(tools=(Tool("t", parameters=parameters, strict=True),)))
    strict = tool_constraint(callers["hermes"], Sampling(tools=(Tool("t", parameters=REFUND.parameters, strict=True),)))
    assert strict is not None
    with pytest.raises(InputError, match="not"):
        follower(callers["hermes"], strict)


@pytest.mark.parametrize(
    "rule, good, bad",
    [
        ('%json {"type": "integer"}', "<12>", "<x>"),
        ('%text "stop"', "<go", "<stop"),
        ('%text "stop"', "<go", "<{"),
        ('%until "stop"', "<go stop>", "<go stop stop>"),
    ],
)
def test_added_rules_may_stand_in_a_users_grammar(renderer: Renderer, rule: str, good: str, bad: str) -> None:
    end = "" if "text" in rule else '">"'
    asked = Constraint("grammar", f'root ::= "<" inner {end}\ninner ::= {rule}')
    assert accepts(renderer, asked, good) and not accepts(renderer, asked, bad)


@pytest.mark.parametrize("rule", ["%json {", "%json [1]", "%text go", '%until ""', "%until 7"])
def test_added_rules_that_are_broken_are_refused(renderer: Renderer, rule: str) -> None:
    with pytest.raises(InputError):
        follower(renderer, Constraint("grammar", f"root ::= inner\ninner ::= {rule}"))
