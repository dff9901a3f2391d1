"""A stored model that another one learns from: found and checked before any work, opened as it is, never changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from luthier.core.dataset import Dataset
from luthier.core.errors import DataError, InputError, MismatchError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.core.task import PromptTemplate
from luthier.models.decode import causal_model
from luthier.models.load import LoadedModel, load_model, load_tokenizer, store_of
from luthier.store.artifacts import path_of
from luthier.store.database import Store
from luthier.store.models import find

if TYPE_CHECKING:
    from torch import Tensor


def check(store: Store, base: ModelRecord, train: Dataset, prompt: PromptTemplate, name: str) -> ModelRecord:
    """The teacher called ``name``, without reading its weights, when a student on ``base`` can learn from it.

    Raises NotFoundError, UnsupportedError for another architecture or an encoder without labels, MismatchError for another
    tokenizer, other labels or another prompt.
    """
    record = find(store, name)
    if record.kind not in ("base", "adapter"):
        raise UnsupportedError(f"objective.teacher must be a base model or a tuned one; {name} is an {record.kind}")
    if record.architecture != base.architecture:
        raise UnsupportedError(
            f"the teacher {name} is of architecture {record.architecture}, the student {base.name} of {base.architecture}",
            hint="both must be of one architecture, and read the same tokens",
        )
    _check_tokenizer(store, record, base)
    labels = tuple(record.meta.get("labels") or ()) if record.kind == "adapter" else ()
    if train.kind == "labelled":
        _check_labels(record, labels, prompt.labels)
    if base.architecture != "encoder" and train.kind != "chat":
        _check_prompt(record, prompt)
    return record


def _root(store: Store, record: ModelRecord) -> ModelRecord:
    while record.kind != "base" and record.base:
        record = find(store, record.base)
    return record


def tokens_apart(store: Store, one: ModelRecord, other: ModelRecord) -> tuple[int, int, int] | None:
    """None where two stored models read the same tokens, else the sizes of both vocabularies and how many tokens are not shared."""
    roots = [_root(store, record) for record in (one, other)]
    if roots[0].digest == roots[1].digest:
        return None
    first, second = (load_tokenizer(path_of(store, record.digest)).get_vocab() for record in roots)
    return None if first == second else (len(first), len(second), len(set(first.items()) ^ set(second.items())))


def _check_tokenizer(store: Store, teacher: ModelRecord, student: ModelRecord) -> None:
    apart = tokens_apart(store, teacher, student)
    if apart is not None:
        raise MismatchError(
            f"the teacher {teacher.name} and the student {student.name} have different tokenizers ({apart[1]} and {apart[0]} tokens, "
            f"{apart[2]} of them not shared), so that what one says of a token means nothing to the other",
            hint="take a teacher of the student's family, or train the student on the teacher's answers (luthier data answers)",
        )


def _check_labels(teacher: ModelRecord, theirs: Sequence[str], wanted: Sequence[str]) -> None:
    if not theirs:
        if teacher.architecture == "encoder":
            raise UnsupportedError(
                f"the teacher {teacher.name} has no labels: an encoder answers only with a head",
                hint="tune it first: objective classify",
            )
        return
    if set(theirs) != set(wanted):
        raise MismatchError(
            f"the teacher {teacher.name} knows the labels {', '.join(map(repr, theirs[:20]))}; the training data has "
            f"{', '.join(map(repr, wanted[:20]))}",
            hint="teacher and student must have the same labels",
        )


def _check_prompt(teacher: ModelRecord, prompt: PromptTemplate) -> None:
    stated = teacher.meta.get("prompt")
    if not stated:
        return
    theirs = PromptTemplate.from_dict(dict(stated))
    if (theirs.instruction, theirs.input) != (prompt.instruction, prompt.input):
        raise MismatchError(
            f"the teacher {teacher.name} was tuned with another prompt: instruction {theirs.instruction!r}, input {theirs.input!r}",
            hint="give the same in the section prompt: teacher and student read the same tokens",
        )


def open_teacher(name: str, student: LoadedModel, longest: int) -> LoadedModel:
    """The teacher in memory, on the student's device and in its dtype, frozen. ``longest``: the tokens of the longest row.

    Raises DataError when its context is too short for that.
    """
    dtype = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}[str(student.dtype).removeprefix("torch.")]
    teacher = load_model(store_of(student), name, dtype=dtype, device=str(student.device))
    require_context(teacher, longest)
    teacher.module.eval().requires_grad_(False)
    return teacher


_open: WeakValueDictionary[tuple[str, str, str], LoadedModel] = WeakValueDictionary()


def shared(name: str, student: LoadedModel, longest: int) -> LoadedModel:
    """As ``open_teacher``; the rows of training and of validation have one in common, and let go of it together."""
    record = find(store_of(student), name)
    key = (record.digest, str(student.dtype), str(student.device))
    teacher = _open.get(key)
    if teacher is None:
        teacher = _open[key] = open_teacher(name, student, longest)
    require_context(teacher, longest)
    return teacher


def require_context(teacher: LoadedModel, longest: int) -> None:
    """Raise DataError when the teacher cannot read ``longest`` tokens."""
    if longest > teacher.context_length:
        raise DataError(
            f"a row has {longest} tokens; the teacher {teacher.record.name} reads {teacher.context_length} at most",
            hint="shorten the rows, or leave the long ones out of the file",
        )


def places_of(labels: Sequence[str], teacher: LoadedModel) -> list[int]:
    """Where the student's labels stand among the teacher's."""
    if set(labels) != set(teacher.labels):
        raise InputError(f"the teacher {teacher.record.name} has other labels: {', '.join(map(repr, teacher.labels))}")
    return [teacher.labels.index(label) for label in labels]


class TeacherHead:
    """What makes logits of a language model's hidden states, without the model: its ``module`` can be let go of.

    It is used as a module is in ``models.decode.logits``.
    """

    def __init__(self, module: Any) -> None:
        model = causal_model(module)
        self.config = model.config
        self.final_logits_bias: Tensor | None = getattr(model, "final_logits_bias", None)
        self._head = model.get_output_embeddings()

    def get_output_embeddings(self) -> Any:
        """The head's layer."""
        return self._head


_heads: WeakValueDictionary[tuple[str, str, str], TeacherHead] = WeakValueDictionary()


def head_of(teacher: LoadedModel) -> TeacherHead:
    """The teacher's head; the rows of training and validation have one in common."""
    key = (teacher.record.digest, str(teacher.dtype), str(teacher.device))
    head = _heads.get(key)
    if head is None:
        head = _heads[key] = TeacherHead(teacher.module)
    return head


@dataclass(frozen=True)
class Sizes:
    """Layers, their width, and attention heads of a model."""

    layers: int
    width: int
    heads: int


def sizes(store: Store, record: ModelRecord) -> Sizes:
    """Of a stored model, from its configuration alone."""
    from transformers import AutoConfig

    folder = path_of(store, _root(store, record).digest)
    config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False).get_text_config()
    return Sizes(int(config.num_hidden_layers), int(config.hidden_size), int(config.num_attention_heads))
