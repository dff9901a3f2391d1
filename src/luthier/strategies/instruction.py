"""Ask with a fuller instruction: role, task, what each label means, and the form of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.dataset import Example
from luthier.core.engine import Engine
from luthier.core.errors import InputError, did_you_mean
from luthier.core.task import PromptTemplate
from luthier.data.prompts import StoredPrompt, in_language
from luthier.strategies._prompted import Prompted, plain, read_prompt

if TYPE_CHECKING:
    from luthier.store.database import Store


class Config(EntryConfig):
    """The parts of the instruction: ``role`` ("a careful annotator"), ``task`` (left out: the task's own instruction), ``descriptions``
    (label: what it means, for as many labels as have one), ``output`` (the form of the answer). What is left out has a default.

    ``template`` of the prompt catalogue puts them together, around the task's own input; it may use the placeholders ``role``, ``task``, ``labels_described`` and
    ``output``. Its Chinese version is taken for a Chinese task. ``prepare`` writes the result into ``prompt``.
    """

    prompt: Mapping[str, Any] = Field(default_factory=dict)
    template: str = "instruction"
    role: str = ""
    task: str = ""
    descriptions: Mapping[str, str] = Field(default_factory=dict)
    output: str = ""


def prepare(config: Config, train: Sequence[Example], store: Store | None = None) -> Config:
    """``config`` with the whole instruction in ``prompt``."""
    if not config.template:
        return config
    like = config.task or read_prompt(config.prompt, store=store).instruction or (train[0].text if train else "")
    made = _prompt(config, in_language(config.template, like, store), store)
    return config.model_copy(update={"prompt": plain(made), "template": ""})


def wrap(engine: Engine, config: Config, store: Store | None = None) -> Engine:
    """``engine``, asked with the instruction. Raises InputError for a description of something that is no label."""
    ready = prepare(config, (), store)
    return Prompted(engine, read_prompt(ready.prompt, store=store))


def _prompt(config: Config, stored: StoredPrompt, store: Store | None) -> PromptTemplate:
    own = read_prompt(config.prompt, store=store)
    for label in config.descriptions:
        if label not in own.labels:
            raise InputError(f"instruction.descriptions: {label!r} is not a label. {did_you_mean(label, own.labels)}")
    for key, place in (("role", "role"), ("task", "task"), ("descriptions", "labels_described"), ("output", "output")):
        if getattr(config, key) and place not in stored.placeholders:
            raise InputError(
                f"instruction.{key} has no place in template {stored.label}; it lacks the placeholder {place}"
            )
    chinese = stored.language == "zh"
    values = {
        "role": config.role or _ROLE[bool(own.labels)][chinese],
        "task": config.task or own.instruction or _TASK[bool(own.labels)][chinese],
        "labels_described": _described(own.labels, config.descriptions, chinese=chinese),
        "output": config.output or _OUTPUT[bool(own.labels)][chinese],
    }
    made = stored.template_for(own.labels, **{place: values[place] for place in stored.placeholders if place in values})
    return replace(made, input=made.input.replace("{input}", own.input))


def _described(labels: Sequence[str], descriptions: Mapping[str, str], *, chinese: bool) -> str:
    """A list of the labels, each with its meaning; nothing when there are no labels."""
    if not labels:
        return ""
    colon = "：" if chinese else ": "
    lines = [f"- {label}{colon}{descriptions[label]}" if label in descriptions else f"- {label}" for label in labels]
    return "\n\n" + ("标签：" if chinese else "Labels:") + "\n" + "\n".join(lines)


_ROLE = (
    ("a knowledgeable and precise assistant", "一位知识渊博、回答准确的助手"),
    ("a careful annotator", "一位认真的标注员"),
)
_TASK = (("Answer the question.", "回答问题。"), ("Sort the text into one of the labels.", "判断文本属于哪一个标签。"))
_OUTPUT = (
    ("the answer alone, without an explanation.", "只写答案，不要解释。"),
    ("one of the labels, spelled as in the list, and nothing else.", "只写一个标签，写法与列表一致，不要其他内容。"),
)
