from __future__ import annotations

import json
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.errors import InputError
from luthier.core.trace import Trace
from luthier.data.pii import KINDS, find, redact
from luthier.gateway.watch import redact as module
from luthier.gateway.watch.redact import LOST, SECRETS, Redaction, may_hold_secret, redact_long

KEY = "sk-abcdefghijklmnopqrstuvwx1234"
MAIL = "ann.lee@example.com"


def trace(**changes: object) -> Trace:
    asked = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": f"my key is {KEY} and my mail {MAIL}"},
    )
    given: dict[str, object] = {
        "messages": asked,
        "answer": f"I wrote to {MAIL}",
        "session": MAIL,
        "parameters": {"user": MAIL, "temperature": 0.5, "stop": [MAIL]},
        "details": {
            "tool_calls": [{"id": "call_1", "name": "send", "arguments": json.dumps({"to": MAIL})}],
            "x": [{"at_s": 0.5}],
        },
    }
    return Trace("t", "2026", "m", "chat", **given | changes)  # type: ignore[arg-type]


def test_keys_are_never_kept() -> None:
    kept = Redaction().trace(trace(error=f"refused: {KEY}"))
    assert KEY not in repr(kept)
    assert kept.messages[1]["content"] == f"my key is [SECRET] and my mail {MAIL}"
    assert kept.error == "refused: [SECRET]"
    assert (kept.answer, kept.session) == (f"I wrote to {MAIL}", MAIL)


def test_personal_data() -> None:
    kept = Redaction("pii").trace(trace())
    assert MAIL not in repr(kept)
    assert kept.messages[0]["content"] == "Be brief."
    assert kept.answer == "I wrote to [EMAIL]"
    assert kept.details["tool_calls"][0]["arguments"] == '{"to": "[EMAIL]"}'
    assert kept.parameters["temperature"] == 0.5
    assert kept.session == kept.parameters["user"] != Redaction("pii").trace(trace(session="bob@example.com")).session


def test_all_texts() -> None:
    given = trace(details={"guardrails": [{"name": "topic", "action": "block", "reason": "asked for their salary"}]})
    kept = Redaction("all").trace(given)
    assert [m["content"] for m in kept.messages] == ["[REDACTED: 9 characters]", f"[REDACTED: {len(given.messages[1]['content'])} characters]"]  # fmt: skip
    assert kept.details["guardrails"] == [{"name": "topic", "action": "block", "reason": "[REDACTED: 22 characters]"}]
    assert "salary" not in repr(kept)
    assert MAIL not in repr(kept)


def test_own_expressions_and_one_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MATCH_TIMEOUT_S", 0.02)
    assert Redaction([r"order \d+"]).text("my order 12345 is late") == "my [REDACTED] is late"
    assert Redaction([r"(a|aa)+$"]).text("a" * 60 + "!") == LOST
    with pytest.raises(InputError, match="regular expression that is none"):
        Redaction(["("])


def test_no_content_at_all() -> None:
    kept = Redaction(keep_content=False).trace(trace())
    assert (kept.messages, kept.answer, list(kept.details)) == ((), "", ["x"])
    assert kept.prompt_tokens == trace().prompt_tokens


@pytest.mark.parametrize("filler", ["abcdefgh", "Where is it? I asked on Monday. ", "12 ", "请问 "])
def test_long_texts_are_read_a_window_at_a_time_with_the_same_result(
    filler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW", 500)
    draw = random.Random(0)
    for _ in range(20):
        parts = [
            filler * draw.randrange(5, 60) + draw.choice([f" {KEY} ", f" {MAIL}, ", " password: hunter2! ", " "])
            for _ in range(30)
        ]
        text = "".join(parts)
        for kinds in (SECRETS, frozenset(KINDS)):
            assert redact_long(text, kinds) == redact(text, kinds)


def test_megabytes_take_no_longer_than_their_length() -> None:
    def seconds(characters: int) -> float:
        began = time.process_time()
        Redaction().text("abcdefgh" * (characters // 8))
        return time.process_time() - began

    small = max(min(seconds(250_000) for _ in range(3)), 1e-3)
    assert seconds(2_000_000) < 8 * 4 * small


def test_images_are_not_kept() -> None:
    url = "data:image/png;base64," + "A" * 5000
    content = [{"type": "text", "text": "what is it"}, {"type": "image_url", "image_url": {"url": url}}]
    kept = Redaction().trace(trace(messages=({"role": "user", "content": content},)))
    shown = kept.messages[0]["content"]
    assert shown[0] == content[0]
    assert shown[1]["image_url"]["url"].startswith("data:image/png;base64,[5000 characters, sha256 ")


@given(st.text(st.characters(codec="ascii"), max_size=60), st.sampled_from([
    KEY, "AKIAIOSFODNN7EXAMPLE", "AIzaSyA1234567890abcdefghijklmnopqrstuv", "ghp_0123456789abcdefghijABCDEFGHIJ012345",
    "glpat-abcdefghij0123456789", "xoxb-123456789012-abcdef", "hf_abcdefghijabcdefghijabcdefghij1234", "Bearer aB3dE5fG7hI9jK1lM3nO5pQ7",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N", "https://bob:hunter2x@example.com/", "password: hunter2!",
    "sk_live_4eC39HqLyjWDarjtT1zdp7dc", "SG.abcdefghij0123456789.abcdefghij0123456789", "whsec_abcdefghij0123456789abcd",
    "-----BEGIN PRIVATE KEY-----\nMIIEvQ\n-----END PRIVATE KEY-----", "npm_abcdefghij0123456789ABCDEFGHIJ012345", "x?api_key=abcdef12",
]))  # fmt: skip
def test_the_quick_look_misses_nothing_that_the_thorough_one_finds(around: str, secret: str) -> None:
    for text in (f"{around} {secret} {around}", secret, around):
        if find(text, SECRETS):
            assert may_hold_secret(text)


def test_the_quick_look_spares_most_texts() -> None:
    assert not may_hold_secret("Where is my parcel? I ordered it on Monday and nobody answers.")
