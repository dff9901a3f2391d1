"""Extraction as generation: entities, relations and events asked for in one instruction format and answered in one JSON form.

In the manner of UIE (Lu et al. 2022, "Unified Structure Generation for Universal Information Extraction") and InstructUIE (Wang et al. 2023,
section 3): the instruction names the kinds of things and lists their types, the input is the text, the answer a structure. Here the
structure is a JSON object of lists, without places in the text, which models that write text cannot count:

    {"entities": [{"type", "text"}], "relations": [{"type", "head", "tail"}], "events": [{"type", "trigger", "arguments": [{"role", "text"}]}]}

with those of the three that the data have. Types that a text has nothing of are listed as well, so that a model learns to leave them out.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from luthier.core.dataset import Dataset, Example
from luthier.core.errors import DataError, InputError
from luthier.core.message import Message
from luthier.data.instructions import Language, language_of

KINDS = ("entities", "extraction")
PARTS = ("entities", "relations", "events")
_FORMS = {
    "entities": '{"type": ..., "text": ...}',
    "relations": '{"type": ..., "head": ..., "tail": ...}',
    "events": '{"type": ..., "trigger": ..., "arguments": [{"role": ..., "text": ...}]}',
}
_SAYS: Mapping[Language, Mapping[str, str]] = {
    "en": {
        "begin": "Extract what the text says. Answer with JSON only, in this form:",
        "entities": "Types of entities: ",
        "relations": "Types of relations, from head to tail: ",
        "events": "Types of events, with the roles of their arguments: ",
        "end": "Copy texts to the letter, in the order in which they stand. A list is empty where the text has nothing for it.",
        "comma": ", ",
        "open": " (",
        "close": ")",
    },
    "zh": {
        "begin": "抽取文本中的信息,只用如下形式的 JSON 回答:",
        "entities": "实体类型:",
        "relations": "关系类型(由 head 到 tail):",
        "events": "事件类型及其论元角色:",
        "end": "文本片段须照原文抄写,按出现的先后排列。没有相应内容时,列表为空。",
        "comma": "、",
        "open": "(",
        "close": ")",
    },
}


@dataclass(frozen=True)
class Schema:
    """What is asked for: of each part its types, of events also their roles. A part that is not a key is not asked for."""

    types: Mapping[str, Mapping[str, tuple[str, ...]]]

    def with_types(self, wanted: Mapping[str, Iterable[str]]) -> Schema:
        """Only these types of each part."""
        kept = {part: set(wanted.get(part, ())) for part in self.types}
        return Schema(
            {part: {t: roles for t, roles in of.items() if t in kept[part]} for part, of in self.types.items()}
        )


def schema_of(examples: Sequence[Example]) -> Schema:
    """The types and roles that ``examples`` have, sorted. Raises DataError when there are none at all."""
    found: dict[str, dict[str, set[str]]] = {}
    for example in examples:
        for part, listed in content(example).items():
            types = found.setdefault(part, {})
            for each in listed:
                types.setdefault(each["type"], set()).update(a["role"] for a in each.get("arguments", ()))
    if not any(found.values()):
        raise DataError("no row has an entity, a relation or an event: there is nothing to extract")
    return Schema(
        {part: {t: tuple(sorted(found[part][t])) for t in sorted(found[part])} for part in PARTS if part in found}
    )


def content(example: Example) -> dict[str, list[dict[str, Any]]]:
    """What a row of either kind says is in its text, by part, without places."""
    said = json.loads(example.target or "{}")
    parts = {"entities": said} if isinstance(said, list) else said
    if "entities" in parts:
        parts = parts | {"entities": [{"type": e["type"], "text": e["text"]} for e in parts["entities"]]}
    return {part: parts[part] for part in PARTS if part in parts}


def answer(example: Example, parts: Iterable[str] = ()) -> str:
    """The answer that a model is taught; ``parts`` are there even where the row has none."""
    said = content(example)
    asked = set(parts) | said.keys()
    return json.dumps({part: said.get(part, []) for part in PARTS if part in asked}, ensure_ascii=False)


def instruction(schema: Schema, language: Language = "en") -> str:
    """What a model is told before the text."""
    says = _SAYS[language]
    form = ", ".join(f'"{part}": [{_FORMS[part]}]' for part in schema.types)
    lines = [says["begin"], "{" + form + "}"]
    for part, types in schema.types.items():
        shown = [
            name + (says["open"] + says["comma"].join(roles) + says["close"] if roles else "")
            for name, roles in types.items()
        ]
        lines.append(f"{says[part]}{says['comma'].join(shown) or '-'}")
    return "\n".join([*lines, says["end"]])


def instruction_for(dataset: Dataset) -> str:
    """The instruction of a dataset of either kind: all its types, in the language of its texts."""
    return instruction(schema_of(dataset.examples), language_of(example.text for example in dataset.examples))


def conversations(
    dataset: Dataset, *, negatives: int | None = None, language: Language | None = None, seed: int = 0
) -> Dataset:
    """The rows as instruction conversations (kind chat), to mix with others.

    ``negatives``: each row lists its own types and that many of the others, drawn by ``seed`` and the row, instead of all (InstructUIE,
    section 3.2, draws types for the same reason). Raises InputError for another kind or fewer than 0, DataError where nothing is there to extract.
    """
    if dataset.kind not in KINDS:
        raise InputError(
            f"extraction is of rows of kind {' or '.join(KINDS)}; {dataset.name} is {dataset.kind}",
            hint="luthier data inspect FILE shows what a file holds",
        )
    if negatives is not None and negatives < 0:
        raise InputError(f"negatives must be at least 0; got {negatives}")
    from luthier.data.read import example_id

    whole = schema_of(dataset.examples)
    said = language or language_of(example.text for example in dataset.examples)
    made = []
    for example in dataset.examples:
        schema = whole if negatives is None else _narrowed(whole, example, negatives, seed)
        turns = (
            Message("system", instruction(schema, said)),
            *example.messages,
            Message("assistant", answer(example, schema.types)),
        )
        chat = replace(example, messages=turns, target=None)
        made.append(replace(chat, id=example_id(chat)))
    return Dataset(dataset.name, "chat", tuple(made), "messages", dataset.problems)


def _narrowed(whole: Schema, example: Example, negatives: int, seed: int) -> Schema:
    own = {part: {each["type"] for each in listed} for part, listed in content(example).items()}
    draw = random.Random(f"{seed}/{example.id}")
    wanted = {}
    for part, types in whole.types.items():
        others = [name for name in types if name not in own.get(part, ())]
        wanted[part] = {*own.get(part, ()), *draw.sample(others, min(negatives, len(others)))}
    return whole.with_types(wanted)
