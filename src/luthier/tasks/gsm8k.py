"""GSM8K: school mathematics in words, answered in worked steps (Cobbe et al., 2021).

Prompt, ``direct``: five questions with worked answers drawn from the train part, then ``Question: ...`` and ``Answer:``; the result comes
after ``####``. ``cot_zero_shot``: ``Q: ...``, ``A: Let's think step by step.``; ``cot``: eight worked examples of your own file ("The answer is
5.") in the form of Wei et al. (2022). Scorers: regex for the result where the prompt puts it (the harness's ``strict-match``), regex for
the last number (``flexible-extract``); both ignore case, commas, dollar signs and a final full stop.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from luthier.core.task import Task
from luthier.tasks._benchmark import Benchmark, Item, ShotsConfig, build_task
from luthier.tasks._fields import Fields, text
from luthier.tasks._source import Source

SOURCE = Source(
    paper="Cobbe et al. (2021), Training Verifiers to Solve Math Word Problems, arXiv:2110.14168",
    licence="MIT",
    fields="question, answer (worked, the result after ####); for cot examples question, target",
    hub="hub:openai/gsm8k",
    matches="gsm8k, gsm8k_cot_zeroshot, gsm8k_cot (whose eight examples are not shipped)",
)
SHOTS = {"direct": 5, "cot": 8, "cot_zero_shot": 0}
MARKS = {
    "direct": r"#### (\-?[0-9\.\,]+)",
    "cot": r"The answer is (\-?[0-9\.\,]+).",
    "cot_zero_shot": r"The answer is (\-?[0-9\.\,]+).",
}
LAST = r"(-?[$0-9.,]{2,})|(-?[0-9]+)"
IGNORED = {"casefold": True, "ignore": [",", r"\$", r"(?s).*#### ", r"\.$"]}


class Config(ShotsConfig):
    """``style`` is how it is asked; ``shots`` follows from it when left out: 5 for ``direct``, 8 for ``cot``, 0 for ``cot_zero_shot``. ``cot``
    takes its examples from the file ``examples`` (question, target), the first ones first."""

    style: Literal["direct", "cot", "cot_zero_shot"] = "direct"
    shots: int | None = Field(default=None, ge=0, le=64)  # type: ignore[assignment]


def define(config: Config) -> Benchmark:
    """How rows become questions."""
    style = config.style
    return Benchmark(
        name="gsm8k" if style == "direct" else f"gsm8k_{style}",
        entry="gsm8k",
        kind="generate",
        source=SOURCE,
        read=lambda row: _read(row, style),
        scorers=(
            ("regex", {"as": "strict_match", "pattern": MARKS[style], **IGNORED}),
            ("regex", {"as": "flexible_extract", "pattern": LAST, "take": "last", **IGNORED}),
        ),
        pool="train",
        folder="main",
        sampler="first" if style == "cot" else "drawn",
        stop=("Question:" if style == "direct" else "Q:", "</s>", "<|im_end|>"),
    )


def build(config: Config) -> Task:
    """The task. Raises InputError or DataError."""
    return build_task(define(config), config.model_copy(update={"shots": shots(config)}))


def shots(config: Config) -> int:
    """How many worked examples are shown."""
    return SHOTS[config.style] if config.shots is None else config.shots


def _read(row: Fields, style: str) -> Item:
    question = text(row, "question")
    worked = text(row, "target" if style == "cot" and "answer" not in row else "answer")
    result = text(row, "final") if row.get("final") is not None else worked.split("####")[-1].strip()
    if style == "direct":
        return Item(f"Question: {question}\nAnswer:", worked, target=result, meta=row)
    thinking = " Let's think step by step." if style == "cot_zero_shot" else ""
    return Item(f"Q: {question}\nA:{thinking}", worked, target=result, meta=row)
