"""Placeholders: one value, one placeholder, and back again in whatever form a model repeats them."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data import pii
from luthier.gateway.guard.placeholders import Placeholders, mask_arguments
from luthier.gateway.guardrails._contract import Finding

KINDS = (*pii.KINDS, "NAME")


def masked(texts: list[str]) -> tuple[Placeholders, list[str]]:
    """The texts of one conversation behind placeholders."""
    places = Placeholders(KINDS, texts)
    out = []
    for text in texts:
        out.append(places.mask(text, [Finding(span.kind, span.start, span.end) for span in pii.find(text)]))
    return places, out


def in_pieces(text: str, rng: random.Random) -> list[str]:
    out, at = [], 0
    while at < len(text):
        count = rng.choice([1, 1, 2, 3, 7, 30])
        out.append(text[at : at + count])
        at += count
    return out


def test_the_same_value_has_the_same_placeholder_in_the_whole_conversation() -> None:
    places, texts = masked(["a@x.org and b@x.org", "no, b@x.org", "call 13800138000 or a@x.org"])
    assert texts == ["[EMAIL_1] and [EMAIL_2]", "no, [EMAIL_2]", "call [PHONE_1] or [EMAIL_1]"]
    assert places.restore(texts[2]) == "call 13800138000 or a@x.org"


def test_numbers_that_the_conversation_uses_itself_are_not_given_out() -> None:
    places, texts = masked(["write to a@x.org, not to [email_1] or EMAIL_2"])
    assert texts == ["write to [EMAIL_3], not to [email_1] or EMAIL_2"]
    assert places.restore(texts[0]) == "write to a@x.org, not to [email_1] or EMAIL_2"


@pytest.mark.parametrize(
    "said",
    ["[EMAIL_1]", "[email_1]", "[Email_1]", "[EMAIL\\_1]", "[EMAIL 1]", "[EMAIL-1]", "[ EMAIL_1 ]", "【EMAIL_1】", "EMAIL_1", "email\\_1",
     "［EMAIL_1］"],
)  # fmt: skip
def test_forms_in_which_models_repeat_placeholders(said: str) -> None:
    places, _ = masked(["a@x.org"])
    assert places.restore(f"Write to {said}, please.") == "Write to a@x.org, please."
    assert places.restore(f"给{said}写信") == "给a@x.org写信"


@pytest.mark.parametrize(
    "said", ["[EMAIL_2]", "[EMAIL_11]", "[EMAIL_]", "XEMAIL_1", "EMAIL_1x", "[PHONE_1]", "email 1", "[MAIL_1]"]
)
def test_what_stands_for_nothing_stays(said: str) -> None:
    places, _ = masked(["a@x.org"])
    assert places.restore(f"x {said} y") == f"x {said} y"


def test_arguments_of_calls_stay_json() -> None:
    key = '-----BEGIN PRIVATE KEY-----\nMII"x"\\\n-----END PRIVATE KEY-----'
    places, texts = masked([f"use {key} for a@x.org"])
    assert texts == ["use [SECRET_1] for [EMAIL_1]"]
    restored = places.restore_arguments('{"key": "[SECRET_1]", "to": ["[email_1]", "x"], "n": 3}')
    assert json.loads(restored) == {"key": key, "to": ["a@x.org", "x"], "n": 3}
    assert places.restore_arguments('{"to":  "nobody"}') == '{"to":  "nobody"}', "what holds none is not rewritten"
    broken = places.restore_arguments('{"key": "[SECRET_1]"')
    assert json.loads(broken + "}") == {"key": key}


def test_arguments_are_masked_inside_of_their_strings() -> None:
    made = mask_arguments('{"to": "a@x.org", "phone": 13800138000, "n": 3, "ok": true}', pii.redact)
    assert json.loads(made) == {"to": "[EMAIL]", "phone": "[PHONE]", "n": 3, "ok": True}
    assert mask_arguments('{"n":   3}', pii.redact) == '{"n":   3}'
    assert mask_arguments("not json a@x.org", pii.redact) == "not json [EMAIL]"


def test_json_answers_get_values_that_are_escaped() -> None:
    value = 'pa"ss\\w0rd1'
    places = Placeholders(KINDS)
    assert places.mask(value, [Finding("SECRET", 0, len(value))]) == "[SECRET_1]"
    assert json.loads(places.restore('{"password": "[SECRET_1]"}', as_json=True)) == {"password": value}


def test_names_are_hidden_wherever_they_stand() -> None:
    places = Placeholders(KINDS)
    places.mask("Ada Byron", [Finding("NAME", 0, 9)])
    places.mask("张伟", [Finding("NAME", 0, 2)])
    assert places.mask_names("Ada Byron's; Ada Byronson; 给Ada Byron，问张伟说") == (
        "[NAME_1]'s; Ada Byronson; 给[NAME_1]，问[NAME_2]说"
    )


def test_what_a_model_wrote_by_itself_has_no_number() -> None:
    places, _ = masked(["a@x.org"])
    text = "a@x.org or c@x.org"
    found = [Finding("EMAIL", 0, 7), Finding("EMAIL", 11, 18)]
    assert places.mask_known(text, found) == "[EMAIL_1] or [EMAIL]"


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(["[EMAIL_1]", "[email\\_1]", "EMAIL_1", "[EMAIL_2]", "[EMA", "EMAIL", "[", "]", "_1", "1", " ", "[PHONE_1]", "【PHONE 1】", "x", "给"]),
        max_size=14,
    ),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_a_growing_answer_is_restored_as_the_whole(parts: list[str], rng: random.Random) -> None:
    places, _ = masked(["a@x.org", "13800138000"])
    text = "".join(parts)
    restorer = places.restorer()
    pieces = in_pieces(text, rng)
    got = "".join([*(restorer.feed(piece) for piece in pieces), restorer.feed("", final=True)])
    assert got == places.restore(text)


def test_a_restorer_waits_only_for_what_may_be_a_placeholder() -> None:
    places, _ = masked(["a@x.org"])
    restorer = places.restorer()
    assert restorer.feed("Dear ") == "Dear "
    assert restorer.feed("[EM") == ""
    assert restorer.feed("AIL_1] and") == "a@x.org and"
    assert restorer.feed(" more") == " more"
