"""``luthier kb ask``, and ``luthier chat kb:NAME``."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Ran(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]
ANSWER = "fake:Leave is thirty days [1]"


@pytest.fixture
def shop(run: Callable[..., Any], tmp_path: Path) -> Run:
    """A base ``shop``: a public document, one of the tenant ``acme``, one in Chinese."""
    (tmp_path / "handbook.md").write_text("# Leave\n\nLeave is thirty days a year. Ask your manager first.")
    (tmp_path / "pay.md").write_text("# Pay\n\nPay at acme is a secret.")
    (tmp_path / "手册.md").write_text("# 年假\n\n年假每年十五天。")

    def ran(*arguments: str) -> Ran:
        return Ran(*run(*arguments))

    assert ran("kb", "create", "shop", "--embedder", "fake").code == 0
    assert ran("kb", "add", "shop", str(tmp_path / "handbook.md"), str(tmp_path / "手册.md")).code == 0
    assert ran("kb", "add", "shop", str(tmp_path / "pay.md"), "--label", "acme").code == 0
    return ran


def test_an_answer_and_under_it_what_it_rests_on(shop: Run) -> None:
    ran = shop("kb", "ask", "shop", "How long is leave?", "--model", ANSWER, "-k", "1", "--explain")
    assert ran.code == 0
    answer, empty, citation = ran.out.strip().splitlines()
    assert (answer, empty) == ("Leave is thirty days [1]", "")
    assert citation.startswith("[1] handbook.md") and citation.endswith(": Leave is thirty days a year.")
    assert "1 call" in ran.err and "query How long is leave?" in ran.err


def test_streamed_or_not_it_is_the_same(shop: Run) -> None:
    asked = ("kb", "ask", "shop", "年假几天?", "--model", "fake:年假每年十五天【1】", "-k", "1")
    assert shop(*asked).out == shop(*asked, "--no-stream").out
    assert "年假每年十五天[1]\n" in shop(*asked).out and ": 年假每年十五天。" in shop(*asked).out


def test_json(shop: Run) -> None:
    ran = shop(
        "kb",
        "ask",
        "shop",
        "How long is leave?",
        "--model",
        ANSWER,
        "-k",
        "2",
        "--mode",
        "refine",
        "--option",
        "at_once=1",
        "--json",
    )
    told = json.loads(ran.out)
    assert (told["answer"], told["answered"], told["mode"], told["model"]) == (
        "Leave is thirty days [1]",
        True,
        "refine",
        ANSWER,
    )
    assert told["calls"] == 2 and len(told["passages"]) == 2
    assert told["citations"][0]["quote"] == "Leave is thirty days a year."


def test_labels_decide_what_is_seen(shop: Run) -> None:
    asked = ("kb", "ask", "shop", "What of pay?", "--model", ANSWER, "--json")
    seen = {
        label: json.loads(shop(*asked, *label).out)["passages"]
        for label in [(), ("--label", "acme"), ("--label", "other")]
    }
    has_pay = {label: any("secret" in each["text"] for each in passages) for label, passages in seen.items()}
    assert has_pay == {(): True, ("--label", "acme"): True, ("--label", "other"): False}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing", "q"), "knowledge base 'nothing' is not known"),
        (("shop", "q"), "answer.model=MODEL"),
        (("shop", "q", "--model", "gpt"), "'gpt'"),
        (("shop", " ", "--model", "fake"), "question"),
        (("shop", "q", "--model", "fake", "--mode", "stuf"), "stuff"),
        (("shop", "q", "--model", "fake", "--option", "ordr=edges"), "order"),
        (("shop", "q", "--model", "fake", "--least", "dense"), "SCORE=NUMBER"),
        (("shop", "q", "--model", "fake", "-k", "0"), "-k"),
    ],
)
def test_bad_input_is_said(shop: Run, arguments: tuple[str, ...], message: str) -> None:
    ran = shop("kb", "ask", *arguments)
    assert ran.code == 2
    assert message in ran.err and "Traceback" not in ran.err


def test_a_conversation_with_a_base(shop: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shop("kb", "set", "shop", f"answer.model={ANSWER}", "answer.k=1").code == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("How long is leave?\nAnd the pay?\n"))
    ran = shop("chat", "kb:shop")
    assert ran.code == 0
    assert ran.out.count("Leave is thirty days [1]") == 2
    assert "handbook.md" in ran.out  # what it rests on is under the answer
