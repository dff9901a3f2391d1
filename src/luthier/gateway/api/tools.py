"""Tools that a request offers, and which of them it wants called."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema

from luthier.core.errors import did_you_mean
from luthier.core.message import Tool
from luthier.gateway.api.schemas import read_schema
from luthier.gateway.api.wire import bad, expect, optional, refuse_type, require_known

MOST_TOOLS = 128
CHOICES = ("none", "auto", "required")
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NO_PARAMETERS = {"type": "object", "properties": {}}


def read_tools(value: Any) -> tuple[Tool, ...]:
    """``[{"type": "function", "function": {"name", "description", "parameters", "strict"}}]``, or the function's fields beside ``type``,
    as the Responses API has them."""
    if not isinstance(value, list):
        refuse_type(value, "a list of tools", "")
    if len(value) > MOST_TOOLS:
        raise bad(f"may hold at most {MOST_TOOLS} tools; got {len(value)}")
    tools = [_tool(each, f"[{number}]") for number, each in enumerate(value)]
    names = [tool.name for tool in tools]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise bad(f"is the name of an earlier tool, too: {name!r}", f"[{number}]")
    return tuple(tools)


def _tool(value: Any, at: str) -> Tool:
    if not isinstance(value, dict):
        refuse_type(value, 'an object like {"type": "function", "function": {...}}', at)
    if value.get("type") != "function":
        refuse_type(value.get("type"), "function, the only type of tools here", f"{at}.type")
    function, here = value, at
    if "function" in value:
        require_known(value, ("type", "function"), at)
        function, here = value["function"], f"{at}.function"
        if not isinstance(function, dict):
            refuse_type(function, "an object with a name", here)
    require_known(function, ("type", "name", "description", "parameters", "strict"), here)
    name = expect(function.get("name"), str, "text", f"{here}.name")
    if not _NAME.fullmatch(name) or name in CHOICES:
        refuse_type(name, f"1 to 64 letters, digits, _ or -, and none of {', '.join(CHOICES)}", f"{here}.name")
    parameters = optional(
        function.get("parameters"), dict, "a JSON schema (an object)", f"{here}.parameters", _NO_PARAMETERS
    )
    if "type" not in parameters and "$ref" not in parameters:
        parameters = {"type": "object", **parameters}
    return Tool(
        name=name,
        description=optional(function.get("description"), str, "text", f"{here}.description", ""),
        parameters=read_schema(parameters, f"{here}.parameters"),
        strict=optional(function.get("strict"), bool, "true or false", f"{here}.strict", False),
    )


def read_choice(value: Any) -> str:
    """``none``, ``auto``, ``required`` or the name of a tool. Raises for another form."""
    if isinstance(value, str) and value in CHOICES:
        return value
    if not isinstance(value, dict):
        refuse_type(value, f'one of {", ".join(CHOICES)}, or {{"type": "function", "function": {{"name": "..."}}}}', "")
    if value.get("type") != "function":
        refuse_type(value.get("type"), "function", ".type")
    if "function" not in value:
        require_known(value, ("type", "name"), "")
        return str(expect(value.get("name"), str, "text", ".name"))
    require_known(value, ("type", "function"), "")
    function = expect(value["function"], dict, "an object with a name", ".function")
    require_known(function, ("name",), ".function")
    return str(expect(function.get("name"), str, "text", ".function.name"))


def check_choice(choice: str | None, tools: Sequence[Tool]) -> None:
    """Raise for the choice of a tool that is not offered, or of one where none is."""
    names = [tool.name for tool in tools]
    if choice in (None, "none", "auto") or choice in names or (choice == "required" and names):
        return
    if not names:
        raise bad("needs tools; got none", ".tool_choice")
    known = did_you_mean(str(choice)[:64], names)
    raise bad(f"must name one of the tools; got {str(choice)[:64]!r}. {known}", ".tool_choice")


_FUNCTION: dict[str, Any] = {
    "name": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"},
    "description": {"type": "string"},
    "parameters": {"type": "object", "description": "JSON schema of the arguments"},
    "strict": {"type": "boolean", "description": "arguments always follow the schema"},
}
_NAMED: Mapping[str, Any] = {
    "type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}, "additionalProperties": False,
}  # fmt: skip


def _tools_schema(*, flat: bool) -> dict[str, Any]:
    properties: dict[str, Any] = {"type": {"const": "function"}}
    if flat:
        properties |= _FUNCTION
    else:
        properties["function"] = {
            "type": "object", "required": ["name"], "properties": _FUNCTION, "additionalProperties": False,
        }  # fmt: skip
    item = {"type": "object", "required": ["type", "name" if flat else "function"], "properties": properties}
    return {"type": "array", "maxItems": MOST_TOOLS, "items": item | {"additionalProperties": False}}


def _choice_schema(*, flat: bool) -> dict[str, Any]:
    named = {"name": {"type": "string"}} if flat else {"function": _NAMED}
    item = {"type": "object", "required": ["type", *named], "properties": {"type": {"const": "function"}, **named}}
    return {"anyOf": [{"enum": list(CHOICES)}, item | {"additionalProperties": False}]}


Tools = Annotated[tuple[Tool, ...], PlainValidator(read_tools), WithJsonSchema(_tools_schema(flat=False))]
FlatTools = Annotated[tuple[Tool, ...], PlainValidator(read_tools), WithJsonSchema(_tools_schema(flat=True))]
Choice = Annotated[str, PlainValidator(read_choice), WithJsonSchema(_choice_schema(flat=False))]
FlatChoice = Annotated[str, PlainValidator(read_choice), WithJsonSchema(_choice_schema(flat=True))]
