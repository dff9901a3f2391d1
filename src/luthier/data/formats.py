"""The ways in which people write examples, recognised by the names of a row's fields.

One ``Format`` says which fields it needs and how a row becomes an ``Example``; the first that fits wins. Fields that a format
does not use are kept in ``meta``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from luthier.core.dataset import Example, Kind
from luthier.core.message import Conversation, Message
from luthier.data import annotated, fields
from luthier.data.fields import Fields, RowError

_NEGATIVE = re.compile(r"neg|negatives?|negatives?_\d+")


@dataclass(frozen=True)
class Format:
    """One way of writing examples. ``build`` takes fields out of the row (a copy) and leaves what it does not use."""

    name: str
    kind: Kind
    needs: tuple[str, ...]
    build: Callable[[Fields], Example]

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether the row has the fields."""
        return all(field in row for field in self.needs)


def recognise(row: Mapping[str, Any]) -> Format | None:
    """The format of a row, or None."""
    for form in FORMATS:
        if form.fits(row):
            return form
    return None


def build(form: Format, row: Mapping[str, Any]) -> Example:
    """The row as an example without id and source. Raises RowError with the reason when it cannot be used."""
    rest = dict(row)
    example = form.build(rest)
    meta = {key: value for key, value in rest.items() if not fields.nothing(value)}
    if isinstance(meta.get("tools"), str):
        meta["tools"] = fields.parsed(meta["tools"], "tools")
    if "tools" in meta and not (isinstance(meta["tools"], list) and all(isinstance(t, dict) for t in meta["tools"])):
        raise RowError("tools must be a list of objects")
    return replace(example, meta=meta)


def as_row(example: Example, kind: Kind) -> Fields:
    """The row that ``build`` would read back as the same example: Luthier's own way of writing."""
    meta = dict(example.meta)
    if kind == "labelled":
        return {"text": example.text, "label": example.target, **meta}
    if kind == "entities":
        return {"text": example.text, "entities": json.loads(example.target or "[]"), **meta}
    if kind == "extraction":
        return {"text": example.text, **json.loads(example.target or "{}"), **meta}
    if kind == "number":
        return {"text": example.text, "target": example.score, **meta}
    if kind == "text":
        return {"text": example.text, **meta}
    if kind == "chat":
        return {"messages": [_message_row(m) for m in example.messages], **meta}
    if kind == "question":
        return {"question": example.text} | _answer_row(example) | meta
    if kind == "pairs":
        return _pairs_row(example) | meta
    if kind == "similarity":
        return {"sentence1": example.text, "sentence2": example.positives[0], "score": example.score, **meta}
    prompt = [_message_row(m) for m in example.messages]
    if example.chosen and example.rejected:
        return {"prompt": prompt, "chosen": _said(example.chosen), "rejected": _said(example.rejected), **meta}
    good = bool(example.chosen)
    return {"prompt": prompt, "completion": _said(example.chosen or example.rejected), "label": good, **meta}


def _pairs_row(example: Example) -> Fields:
    one = len(example.positives) == 1
    row: Fields = {"anchor": example.text, "positive": example.positives[0] if one else list(example.positives)}
    return row | ({"negatives": list(example.negatives)} if example.negatives else {})


def _answer_row(example: Example) -> Fields:
    """The answer's field of a question, unless ``meta`` has kept it."""
    meta, several = example.meta, example.target is None or bool(example.references)
    if "choices" in meta and ("answer" in meta or "correct" in meta):
        return {}
    if several:
        return {} if "answers" in meta else {"answers": list(example.references)}
    return {"answer": example.target}


def _message_row(message: Message) -> Fields:
    row: Fields = {"role": message.role, "content": message.content}
    if message.tool_calls:
        calls = ({"name": c.name, "arguments": c.arguments, "id": c.id} for c in message.tool_calls)
        row["tool_calls"] = [{key: value for key, value in call.items() if value or key != "id"} for call in calls]
    if message.tool_call_id is not None:
        row["tool_call_id"] = message.tool_call_id
    return row


def _said(turns: Conversation) -> str | list[Fields]:
    if len(turns) == 1 and not turns[0].tool_calls:
        return turns[0].content
    return [_message_row(m) for m in turns]


def _chat(row: Fields, field: str) -> Example:
    if row.get(field) is None:
        raise RowError(f"{field} is missing")
    messages = fields.system(row) + fields.turns(row.pop(field), field)
    if not any(m.role == "assistant" for m in messages):
        raise RowError(f"{field} has no assistant turn")
    return Example("", messages)


def _alpaca(row: Fields) -> Example:
    system = fields.system(row)
    history: list[Message] = []
    for at, pair in enumerate(row.pop("history", None) or ()):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowError(f"history[{at}] must be a pair of question and answer; got {fields.shown(pair)}")
        history += [
            *fields.one_turn(pair[0], f"history[{at}]", "user"),
            *fields.one_turn(pair[1], f"history[{at}]", "assistant"),
        ]
    asked = fields.instruction(row)
    return Example("", (*system, *history, *asked, Message("assistant", fields.text(row, "output"))))


def _pair(row: Fields) -> Example:
    chosen, rejected = row.pop("chosen"), row.pop("rejected")
    if not row.keys() & {"prompt", "messages", "conversations", "question", "instruction"}:
        if not isinstance(chosen, list) or not isinstance(rejected, list):
            raise RowError("prompt is missing")
        both = (fields.turns(chosen, "chosen"), fields.turns(rejected, "rejected"))
        shared = next((at for at, (a, b) in enumerate(zip(*both, strict=False)) if a != b), min(map(len, both)))
        prompt, good, bad = both[0][:shared], both[0][shared:], both[1][shared:]
        if not prompt or not good or not bad:
            raise RowError("prompt is missing, and chosen and rejected share no beginning")
    else:
        prompt = fields.prompt(row)
        good, bad = fields.reply(chosen, "chosen", prompt), fields.reply(rejected, "rejected", prompt)
    if good == bad:
        raise RowError("chosen and rejected are the same")
    return Example("", prompt, chosen=good, rejected=bad)


def _marked(row: Fields) -> Example:
    """One answer with a good/bad mark (KTO). It is a preference with one side, so that no objective takes a bad answer for a target."""
    mark = row.pop("label")
    if isinstance(mark, str) and mark.strip().lower() in ("true", "false", "0", "1"):
        mark = mark.strip().lower() in ("true", "1")
    if not isinstance(mark, bool):
        raise RowError(f"label of a completion must be true or false; got {fields.shown(mark)}")
    if "completion" in row:
        reply = row.pop("completion")
        prompt = fields.prompt(row)
        said = fields.reply(reply, "completion", prompt)
    else:
        turns = fields.prompt(row)
        prompt, said = turns[:-1], turns[-1:]
        if not prompt or said[0].role != "assistant":
            raise RowError("a marked conversation must end with the assistant turn that the label is about")
    return Example("", prompt, chosen=said if mark else (), rejected=() if mark else said)


def _choices(row: Fields) -> Example:
    """A question with choices; ``answer`` is the index, the letter or the text of the right one. ``meta`` keeps both fields."""
    question, texts, answer = fields.text(row, "question"), _choice_texts(row), row["answer"]
    if isinstance(answer, str) and answer in texts:
        return _chosen(question, texts, (texts.index(answer),))
    return _chosen(question, texts, (_place(answer, "answer", texts),))


def _correct(row: Fields) -> Example:
    """A question with choices of which several may be right: ``correct`` lists their indices or letters."""
    question, texts, correct = fields.text(row, "question"), _choice_texts(row), row["correct"]
    if not isinstance(correct, list) or not correct:
        raise RowError(f"correct must be a list of the right choices; got {fields.shown(correct)}")
    return _chosen(question, texts, tuple(_place(one, f"correct[{at}]", texts) for at, one in enumerate(correct)))


def _choice_texts(row: Fields) -> tuple[str, ...]:
    choices = row["choices"]
    if not isinstance(choices, list) or len(choices) < 2:
        raise RowError(f"choices must be a list of at least two; got {fields.shown(choices)}")
    return tuple(fields.answer(choice, f"choices[{at}]") for at, choice in enumerate(choices))


def _place(value: Any, field: str, texts: tuple[str, ...]) -> int:
    """The index that a number or a letter names."""
    if isinstance(value, str) and len(value) == 1 and "A" <= value < chr(65 + len(texts)):
        return ord(value) - 65
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(texts):
        return value
    raise RowError(f"{field} must be one of the {len(texts)} choices or an index from 0; got {fields.shown(value)}")


def _chosen(question: str, texts: tuple[str, ...], correct: tuple[int, ...]) -> Example:
    asked = (Message("user", question),)
    return Example("", asked, texts[correct[0]], choices=texts, correct=correct)


def _question(row: Fields) -> Example:
    return Example(
        "", fields.one_turn(row.pop("question"), "question", "user"), fields.answer(row.pop("answer"), "answer")
    )


def _answers(row: Fields) -> Example:
    """A question with all its good answers; the first is the target, an empty list a question that has none (target None)."""
    question, answers = fields.text(row, "question"), row["answers"]
    if isinstance(answers, Mapping):  # SQuAD: {"text": [...], "answer_start": [...]}
        answers = row["answers"] = answers.get("text")
    if not isinstance(answers, list):
        raise RowError(f"answers must be a list; got {fields.shown(answers)}")
    texts = [fields.answer(answer, f"answers[{at}]") for at, answer in enumerate(answers)]
    return Example("", (Message("user", question),), texts[0] if texts else None, references=tuple(texts))


def _completion(row: Fields, field: str) -> Example:
    reply = row.pop(field)
    prompt = fields.prompt(row)
    return Example("", prompt + fields.reply(reply, field, prompt))


def _labelled(row: Fields) -> Example:
    return Example("", fields.one_turn(row.pop("text"), "text", "user"), fields.label(row.pop("label")))


def _number(row: Fields, field: str) -> Example:
    """A text and a number that is to be told from it."""
    asked, value = fields.one_turn(row.pop("text"), "text", "user"), fields.number(row.pop(field), field)
    return Example("", asked, str(int(value)) if value.is_integer() else repr(value), score=value)


def _plain(row: Fields) -> Example:
    return Example("", fields.one_turn(row.pop("text"), "text", "user"))


def _pairs(row: Fields, anchor: str, positive: str) -> Example:
    """A text with what belongs with it, one or several, and what does not: ``negative``, ``negatives``, ``neg``, ``negative_1``, ..."""
    asked = fields.one_turn(row.pop(anchor), anchor, "user")
    good = fields.texts(row.pop(positive), positive)
    if not good:
        raise RowError(f"{positive} is empty")
    names = [field for field in row if _NEGATIVE.fullmatch(field)]
    bad = [text for field in names if not fields.nothing(row[field]) for text in fields.texts(row[field], field)]
    for field in names:
        del row[field]
    if both := set(good) & set(bad):
        raise RowError(f"the same text is {positive} and negative: {fields.shown(min(both))}")
    return Example("", asked, positives=tuple(dict.fromkeys(good)), negatives=tuple(dict.fromkeys(bad)))


def _scored(row: Fields, one: str, other: str, score: str) -> Example:
    """Two texts and a number that says how alike they are; in what unit does not matter, only the order."""
    asked, beside = fields.one_turn(row.pop(one), one, "user"), fields.text(row, other)
    value = row.pop(score)
    if isinstance(value, bool):
        value = float(value)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise RowError(f"{score} must be a number, higher where the texts are more alike; got {fields.shown(value)}")
    return Example("", asked, positives=(beside,), score=float(value))


def _pair_format(name: str, anchor: str, positive: str) -> Format:
    return _format(name, "pairs", [anchor, positive], lambda row: _pairs(row, anchor, positive))


def _scored_format(name: str, one: str, other: str, score: str) -> Format:
    return _format(name, "similarity", [one, other, score], lambda row: _scored(row, one, other, score))


def _format(name: str, kind: Kind, needs: Iterable[str], make: Callable[[Fields], Example]) -> Format:
    return Format(name, kind, tuple(needs), make)


class _MarkedChat(Format):
    """``{messages, label: true/false}``: only when the label is a mark, since chats may carry labels of other kinds."""

    def fits(self, row: Mapping[str, Any]) -> bool:
        return super().fits(row) and isinstance(row["label"], bool)


class _Number(Format):
    """``{text, target}``, only when the target is a number. ``score`` and ``value`` count only where they stand alone with the text: plain
    text often comes with a score of its quality among other fields."""

    def fits(self, row: Mapping[str, Any]) -> bool:
        field = self.needs[1]
        alone = field == "target" or row.keys() <= {"id", *self.needs}
        return super().fits(row) and alone and fields.written_number(row[field]) is not None


class _Entities(Format):
    """``{text, entities}``, only when entities are a list of objects: other lists of that name are somebody's notes on plain text."""

    def fits(self, row: Mapping[str, Any]) -> bool:
        found = row.get("entities")
        return super().fits(row) and isinstance(found, list) and all(isinstance(each, Mapping) for each in found)


def _number_format(field: str) -> Format:
    return _Number(f"text_{field}", "number", ("text", field), lambda row: _number(row, field))


FORMATS: tuple[Format, ...] = (
    _format("preference", "preference", ["chosen", "rejected"], _pair),
    _MarkedChat("kto_messages", "preference", ("messages", "label"), _marked),
    _format("messages", "chat", ["messages"], lambda row: _chat(row, "messages")),
    _format("sharegpt", "chat", ["conversations"], lambda row: _chat(row, "conversations")),
    _format("kto", "preference", ["prompt", "completion", "label"], _marked),
    _format("alpaca", "chat", ["instruction", "output"], _alpaca),
    _format("multiple_choice", "question", ["question", "choices", "answer"], _choices),
    _format("multiple_correct", "question", ["question", "choices", "correct"], _correct),
    _format("question_answer", "question", ["question", "answer"], _question),
    _format("question_answers", "question", ["question", "answers"], _answers),
    _format("prompt_completion", "chat", ["prompt", "completion"], lambda row: _completion(row, "completion")),
    _format("prompt_response", "chat", ["prompt", "response"], lambda row: _completion(row, "response")),
    _format("text_label", "labelled", ["text", "label"], _labelled),
    _format("tokens_tags", "entities", ["tokens", "tags"], lambda row: annotated.tagged(row, "tags")),
    _format("tokens_ner_tags", "entities", ["tokens", "ner_tags"], lambda row: annotated.tagged(row, "ner_tags")),
    _format("text_relations", "extraction", ["text", "relations"], annotated.extracted),
    _format("text_events", "extraction", ["text", "events"], annotated.extracted),
    _Entities("text_entities", "entities", ("text", "entities"), annotated.with_entities),
    _number_format("target"),
    _number_format("score"),
    _number_format("value"),
    _scored_format("sentences_score", "sentence1", "sentence2", "score"),
    _scored_format("sentences_label", "sentence1", "sentence2", "label"),
    _pair_format("anchor_positive", "anchor", "positive"),
    _pair_format("query_positive", "query", "positive"),
    _pair_format("query_positives", "query", "positives"),
    _pair_format("query_pos", "query", "pos"),
    _pair_format("query_passage", "query", "passage"),
    _pair_format("query_document", "query", "document"),
    _pair_format("question_context", "question", "context"),
    _pair_format("sentences", "sentence1", "sentence2"),
    _format("text", "text", ["text"], _plain),
)
"""From the most particular to the most general."""

FIELD_NAMES = tuple(
    sorted(
        {field for form in FORMATS for field in form.needs}
        | {"input", "system", "history", "tools", "negative", "negatives"}
    )
)
"""Every field name that a format reads."""
