"""What may stand in the fields of a row: texts, labels, answers, turns of a conversation.

Each function checks one and raises RowError, which says what is wrong with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

from luthier.core.errors import InputError
from luthier.core.message import ROLES, Conversation, Message

Fields: TypeAlias = dict[str, Any]

SPEAKERS: Mapping[str, str] = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function": "tool",
    "observation": "tool",
    "developer": "system",
}
"""Names that other projects give to the four roles."""


class RowError(ValueError):
    """Why one row cannot become an example."""


def text(row: Fields, field: str, *, empty: bool = False) -> str:
    """The text in a field, which is taken out of the row."""
    if field not in row:
        raise RowError(f"{field} is missing")
    return checked_text(row.pop(field), field, empty=empty)


def checked_text(value: Any, where: str, *, empty: bool = False) -> str:
    """``value``, which must be text that UTF-8 can hold; ``empty``: it may be empty."""
    if not isinstance(value, str):
        raise RowError(f"{where} must be text; got {shown(value)}")
    if not empty and not value.strip():
        raise RowError(f"{where} is empty")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RowError(f"{where} holds half of a surrogate pair at character {error.start}") from error
    return value


def label(value: Any, field: str = "label") -> str:
    """A class label: text, a whole number or true/false, as text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        more = "; a number to predict goes in target (--column target=label)" if isinstance(value, float) else ""
        raise RowError(f"{field} must be text, a whole number or true/false; got {shown(value)}{more}")
    return checked_text(value, field).strip()


def number(value: Any, field: str) -> float:
    """A number to predict: a JSON number, or text that is one (as tables have it)."""
    found = written_number(value)
    if found is None:
        raise RowError(f"{field} must be a number; got {shown(value)}")
    return found


def written_number(value: Any) -> float | None:
    """The finite number that ``value`` is or says; None for anything else (true and false are none)."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and _finite(value) else None


def _finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float holds
        return False


def answer(value: Any, field: str) -> str:
    """A reference answer: text or a number."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    return checked_text(value, field)


def optional(row: Fields, field: str) -> str:
    """Text that may be missing, null or empty."""
    value = row.pop(field, None)
    return "" if value is None else checked_text(value, field, empty=True)


def nothing(value: Any) -> bool:
    """Whether a field holds no value: null, NaN or an infinity."""
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def parsed(value: str, field: str) -> Any:
    """What JSON in a field says."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowError(f"{field}: not valid JSON: {error}") from error


def shown(value: Any) -> str:
    """A value in at most 60 characters, for messages."""
    if value is None:
        return "null"
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    written = json.dumps(value, ensure_ascii=False, default=str)
    return written if len(written) <= 60 else written[:57] + "..."


def texts(value: Any, field: str) -> list[str]:
    """One text, or a list of them."""
    if not isinstance(value, list):
        return [checked_text(value, field)]
    return [checked_text(each, f"{field}[{at}]") for at, each in enumerate(value)]


def turns(value: Any, field: str) -> Conversation:
    """A list of turns: ``role``/``content``, or ShareGPT's ``from``/``value``."""
    if not isinstance(value, list):
        raise RowError(f"{field} must be a list of messages; got {shown(value)}")
    if not value:
        raise RowError(f"{field} is empty")
    return tuple(_turn(turn, f"{field}[{at}]") for at, turn in enumerate(value))


def _turn(turn: Any, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError(f"{where} must be an object with role and content; got {shown(turn)}")
    role = turn.get("role", turn.get("from"))
    if role is None:
        raise RowError(f"{where}: role is missing")
    if role == "function_call":
        return _function_call(turn.get("value"), where)
    known = SPEAKERS.get(role, role) if isinstance(role, str) else None
    if known not in ROLES:
        raise RowError(f"{where}: unknown role {shown(role)}; allowed: {', '.join([*ROLES, *SPEAKERS])}")
    if turn.get("weight") == 0:
        raise RowError(f"{where}: weight 0 (a turn not to train on) is not supported")
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):
        content = _joined_parts(content, where)
    has_calls = known == "assistant" and bool(turn.get("tool_calls"))
    if content is None and has_calls:
        content = ""
    content = checked_text(content, f"{where}: content", empty=has_calls or known in ("system", "tool"))
    try:
        return Message.from_dict({**turn, "role": known, "content": content})
    except (InputError, AttributeError, TypeError) as error:
        raise RowError(f"{where}: {error}") from error


def _joined_parts(parts: list[Any], where: str) -> str:
    """Content written as a list of parts, when all of them are text."""
    found = []
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else part
            raise RowError(f"{where}: only content parts of type 'text' are supported; got {shown(kind)}")
        found.append(part["text"])
    return "".join(found)


def _function_call(value: Any, where: str) -> Message:
    """A turn of role ``function_call``, whose value is the JSON of one call or of a list of calls."""
    calls = parsed(checked_text(value, where), where)
    try:
        return Message.from_dict(
            {"role": "assistant", "content": "", "tool_calls": calls if isinstance(calls, list) else [calls]}
        )
    except (InputError, AttributeError, TypeError) as error:
        raise RowError(f"{where}: {error}") from error


def prompt(row: Fields) -> Conversation:
    """The prompt of a pair or a completion: text or messages under any of its names, with a system turn when there is one."""
    before = system(row)
    for field in ("prompt", "messages", "conversations", "question"):
        if field in row:
            value = row.pop(field)
            return before + (turns(value, field) if isinstance(value, list) else one_turn(value, field, "user"))
    if "instruction" in row:
        return before + instruction(row)
    raise RowError("prompt is missing")


def system(row: Fields) -> Conversation:
    """The system turn of a row, when there is one."""
    said = optional(row, "system")
    return (Message("system", said),) if said.strip() else ()


def one_turn(value: Any, field: str, role: str) -> Conversation:
    """A text as the only turn."""
    return (Message(role, checked_text(value, field)),)


def reply(value: Any, field: str, asked: Conversation) -> Conversation:
    """What is said after the prompt ``asked``: text, one message, or messages (which may repeat the prompt first)."""
    if isinstance(value, str):
        return one_turn(value, field, "assistant")
    said = turns([value] if isinstance(value, Mapping) else value, field)
    if asked and len(said) > len(asked) and said[: len(asked)] == asked:
        said = said[len(asked) :]
    if said[0].role != "assistant":
        raise RowError(f"{field} must begin with an assistant turn after the prompt; got role {said[0].role!r}")
    return said


def instruction(row: Fields) -> Conversation:
    """Alpaca's prompt: an instruction and the input that it is about, if there is one."""
    wish = text(row, "instruction")
    more = optional(row, "input")
    return (Message("user", f"{wish}\n\n{more}" if more.strip() else wish),)
