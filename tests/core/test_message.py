import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.errors import InputError
from luthier.core.message import ROLES, Message, ToolCall, last_user_text, user

TEXT = st.text(max_size=30)
CALLS = st.lists(st.builds(ToolCall, st.text(min_size=1, max_size=8), TEXT, TEXT), max_size=2).map(tuple)


@given(st.builds(Message, st.sampled_from(ROLES), TEXT, CALLS, st.none() | TEXT))
def test_messages_survive_their_wire_form(message):
    assert Message.from_dict(json.loads(json.dumps(message.as_dict()))) == message


def test_the_wire_form_has_only_what_is_there():
    assert Message("user", "hi").as_dict() == {"role": "user", "content": "hi"}
    asked = Message("assistant", "", (ToolCall("search", '{"q": 1}', "c1"),)).as_dict()
    assert asked["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "search", "arguments": '{"q": 1}'}}
    ]
    assert Message("tool", "42", tool_call_id="c1").as_dict()["tool_call_id"] == "c1"


def test_an_assistant_that_only_calls_tools_may_have_no_content():
    call = {"id": "1", "function": {"name": "f", "arguments": {"a": "ü"}}}
    message = Message.from_dict({"role": "assistant", "content": None, "tool_calls": [call]})
    assert message.content == "" and message.tool_calls == (ToolCall("f", '{"a": "ü"}', "1"),)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"content": "x"}, "message.role"),
        ({"role": "robot", "content": "x"}, "system, user, assistant, tool; got 'robot'"),
        ({"role": 3, "content": "x"}, "got 3"),
        ({"role": "user"}, "content must be text; got NoneType"),
        ({"role": "user", "content": [{"type": "text"}]}, "content must be text; got list"),
        ({"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}, "function name"),
    ],
)
def test_what_is_not_a_message_is_named(data, said):
    with pytest.raises(InputError, match=said):
        Message.from_dict(data)


def test_the_last_user_turn_is_the_question():
    talk = (Message("user", "one"), Message("assistant", "a"), Message("user", "two"), Message("assistant", "b"))
    assert last_user_text(talk) == "two" and last_user_text("raw") == "raw" and user("x") == (Message("user", "x"),)
    with pytest.raises(InputError, match="at least one user turn"):
        last_user_text((Message("system", "x"),))
