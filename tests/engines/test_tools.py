"""Tool calls while an answer streams: any cutting into pieces gives what reading the whole text gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from luthier.core.engine import Sampling
from luthier.core.message import Tool, ToolCall
from luthier.data.render import Renderer
from luthier.data.tools import read_tool_calls
from luthier.engines._tools import ToolText, decoder, prompt_tools

NAMES = ("track", "refund")
OFFERED = Sampling(tools=tuple(map(Tool, NAMES)))
PIECES = st.sampled_from(
    [
        "Well", " ", "\n", "<", "<tool", "_call>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "{", "}", "[", "]", ";", "{}",
        '{"name": "track", "arguments": {"id": 7}}', '{"name": "refund", "parameters": {}}', '[{"name": "track", "arguments": {}}]',
        '<tool_call>\n{"name": "track", "arguments": {"x": "</tool_call>"}}\n</tool_call>', "<|call|>track<|args|>", "<|call|>",
    ]
)  # fmt: skip


@pytest.fixture(scope="module")
def renderers(tiny_decoder_path: Path, tool_templates: dict[str, str | None]) -> list[Renderer]:
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_decoder_path))
    tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]", "<|call|>", "<|args|>"]})
    return [Renderer(tokenizer, template=tool_templates[name]) for name in ("hermes", "llama", "mistral", "named")]


def plain(calls: tuple[ToolCall, ...]) -> list[tuple[str, object]]:
    return [(call.name, json.loads(call.arguments)) for call in calls]


@given(st.lists(PIECES, max_size=7).map("".join), st.lists(st.integers(1, 9), max_size=60), st.integers(0, 3))
@settings(max_examples=600, deadline=None)
def test_any_cutting_gives_the_same(renderers: list[Renderer], text: str, sizes: list[int], which: int) -> None:
    reader = ToolText(renderers[which], OFFERED)
    shown, calls, at = "", list[ToolCall](), 0
    for size in sizes:
        piece, found = reader.push(text[at : at + size])
        shown += piece
        calls += found
        at += size
    piece, found = reader.finish(text[at:])
    shown += piece
    calls += found
    assert (shown, tuple(calls)) == (reader.text, reader.calls)
    whole, expected = read_tool_calls(renderers[which], text, NAMES)
    assert (shown, plain(tuple(calls))) == (whole, plain(expected))
    assert len({call.id for call in calls}) == len(calls)


def test_a_call_is_handed_on_as_soon_as_it_is_whole(renderers: list[Renderer]) -> None:
    reader = ToolText(renderers[0], OFFERED)
    assert reader.push("I look. <to") == ("I look.", ())
    assert reader.push('ol_call>\n{"name": "track", "arguments": {}}') == ("", ())
    text, calls = reader.push("\n</tool_call>\n<tool")
    assert (text, plain(calls)) == ("", [("track", {})])
    assert reader.finish("s>") == ("\n<tools>", ())
    assert reader.text == "I look.\n<tools>"


def test_without_tools_text_passes_as_it_comes(renderers: list[Renderer]) -> None:
    text = '<tool_call>{"name": "track", "arguments": {}} '
    for sampling in (Sampling(), Sampling(tools=OFFERED.tools, tool_choice="none")):
        reader = ToolText(renderers[0], sampling)
        assert reader.push(text) == (text, ())
        assert prompt_tools(sampling) is None


def test_one_call_when_several_are_not_wanted(renderers: list[Renderer]) -> None:
    reader = ToolText(renderers[0], Sampling(tools=OFFERED.tools, parallel_tool_calls=False))
    call = '<tool_call>{"name": "%s", "arguments": {}}</tool_call>'
    reader.push(call % "refund")
    reader.finish(call % "track")
    assert plain(reader.calls) == [("refund", {})]


def test_the_special_tokens_of_calls_are_decoded(renderers: list[Renderer]) -> None:
    renderer = renderers[2]
    ids = [
        renderer.tokenizer.convert_tokens_to_ids("[TOOL_CALLS]"),
        *renderer.plain_ids('[{"name": "track", "arguments": {}}]'),
        1,
    ]
    assert decoder(renderer, Sampling())(ids) == '[{"name": "track", "arguments": {}}]'
    assert decoder(renderer, OFFERED)(ids) == '[TOOL_CALLS][{"name": "track", "arguments": {}}]'
