"""Reading tool calls in the forms that chat templates write, each template being an abridged copy of a family's own way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from luthier.core.errors import UnsupportedError
from luthier.core.message import Message, ToolCall
from luthier.data.call_form import CallForm, call_form
from luthier.data.render import Renderer
from luthier.data.tools import read_tool_calls


@pytest.fixture(scope="module")
def renderers(tiny_decoder_path: Path, tool_templates: dict[str, str | None]) -> dict[str, Renderer]:
    return {name: renderer_of(tiny_decoder_path, template) for name, template in tool_templates.items()}


def renderer_of(folder: Path, template: str | None) -> Renderer:
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]", "<|call|>", "<|args|>"]})
    return Renderer(tokenizer, template=template)


NAMES = ["hermes", "llama", "mistral", "named", "fenced", "quoted", "plain"]

CALLS = (
    ToolCall("track", '{"id": 7, "note": "a } \\"b\\" 你 </tool_call>"}', "call_a"),
    ToolCall("refund", "{}", "call_b"),
)
TOOLS = [{"name": "track", "parameters": {"type": "object"}}, {"name": "refund", "parameters": {"type": "object"}}]


def said(renderer: Renderer, turn: Message) -> str:
    """What the model says when it says ``turn``, as an engine decodes it."""
    asked = (Message("user", "Where is it?"),)
    rendered = renderer.training_ids((*asked, turn), TOOLS)
    ids = [i for i, trained in zip(rendered.ids, rendered.mask, strict=True) if trained and i not in renderer.stop_ids]
    return renderer.decode(ids, keep=call_form(renderer).tokens)


def plain(calls: tuple[ToolCall, ...]) -> list[tuple[str, object]]:
    return [(call.name, json.loads(call.arguments)) for call in calls]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", ["", "I look it up."])
def test_what_a_template_writes_is_read_back(renderers: dict[str, Renderer], name: str, content: str) -> None:
    renderer = renderers[name]
    for calls in (CALLS[:1], CALLS[1:], CALLS):
        if name == "llama" and (len(calls) > 1 or content):
            continue  # such templates hold one call and nothing else
        text, found = read_tool_calls(
            renderer, said(renderer, Message("assistant", content, calls)), ("track", "refund")
        )
        assert text == content
        assert plain(found) == plain(calls)
        assert len({call.id for call in found}) == len(found) and all(call.id.startswith("call_") for call in found)


def test_the_forms(renderers: dict[str, Renderer]) -> None:
    hermes = call_form(renderers["hermes"])
    assert hermes == CallForm(
        opening='<tool_call>\n{"name": "',
        middle='", "arguments": ',
        joint='}\n</tool_call>\n<tool_call>\n{"name": "',
        closing="}\n</tool_call>",
        quoted=False,
        is_json=True,
        begin="<tool_call>",
        end="</tool_call>",
    )
    assert call_form(renderers["plain"]) == hermes
    llama = call_form(renderers["llama"])
    assert (llama.opening, llama.joint, llama.closing, llama.begin) == ('{"name": "', "", "}", "")
    mistral = call_form(renderers["mistral"])
    assert (mistral.begin, mistral.joint, mistral.closing) == ("[TOOL_CALLS]", '}, {"name": "', "}]")
    assert mistral.tokens == ("[TOOL_CALLS]",)
    assert call_form(renderers["named"]).tokens == ("<|call|>", "<|args|>")
    assert call_form(renderers["quoted"]).quoted


def test_a_form_that_cannot_be_read_back_is_refused(renderers: dict[str, Renderer]) -> None:
    with pytest.raises(UnsupportedError, match="cannot be read back"):
        call_form(renderers["xml"])


@pytest.mark.parametrize(
    "name, text, calls",
    [
        ("hermes", '<tool_call>{"arguments": {"id": 7}, "name": "track"}</tool_call>', [("track", {"id": 7})]),
        ("hermes", '<tool_call>\n{"name": "track", "parameters": {}}', [("track", {})]),  # the end was forgotten
        ("hermes", '<tool_call>[{"name": "track", "arguments": {}}, {"name": "refund"}]</tool_call>', [("track", {}), ("refund", {})]),
        ("hermes", '{"name": "track", "arguments": {"id": 7}}', [("track", {"id": 7})]),  # bare
        ("llama", '<|python_tag|>{"name": "track", "parameters": {"id": 7}}', [("track", {"id": 7})]),
        ("llama", '{"name": "track", "parameters": {}}; {"name": "refund", "parameters": {}}', [("track", {}), ("refund", {})]),
        ("llama", '[{"type": "function", "function": {"name": "track", "arguments": "{\\"id\\": 7}"}}]', [("track", {"id": 7})]),
        ("mistral", '[TOOL_CALLS][{"name": "track", "arguments": {"id": 7}}]', [("track", {"id": 7})]),
        ("plain", '[{"name": "track", "arguments": {}}]', [("track", {})]),
    ],
)  # fmt: skip
def test_what_models_write_otherwise_is_read_too(
    renderers: dict[str, Renderer], name: str, text: str, calls: list[tuple[str, object]]
) -> None:
    rest, found = read_tool_calls(renderers[name], text, ("track", "refund"))
    assert (rest, plain(found)) == ("", calls)


@pytest.mark.parametrize(
    "name, text",
    [
        ("hermes", "No tool is needed."),
        ("hermes", '<tool_call>{"name": "track", "arguments": {"id": </tool_call>'),
        ("hermes", '<tool_call>{"name": 7, "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "track", "arguments": [1]}</tool_call>'),
        ("hermes", "<tool_call>" + '{"a":' * 20_000),
        ("llama", '{"name": "Anna", "parameters": {"age": 7}}'),  # nobody offered such a tool
        ("llama", '{"name": "track", "city": "Ulm"}'),
        ("llama", '{"name": "track", "parameters": {}} and so on'),
        ("plain", '{"name": "track"}'),
        ("mistral", "[TOOL_CALLS] nothing"),
        ("named", "<|call|>track<|args|>7"),
    ],
)
def test_what_is_no_call_stays_text(renderers: dict[str, Renderer], name: str, text: str) -> None:
    assert read_tool_calls(renderers[name], text, ("track", "refund")) == (text, ())


def test_text_around_calls_is_kept(renderers: dict[str, Renderer]) -> None:
    call = '<tool_call>\n{"name": "track", "arguments": {}}\n</tool_call>'
    text, found = read_tool_calls(
        renderers["hermes"], f"First.\n\n{call}\n{call}\n\nThen.\n<tool_call>broken\n", ("track",)
    )
    assert text == "First.\nThen.\n<tool_call>broken"
    assert len(found) == 2
