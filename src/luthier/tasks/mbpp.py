"""MBPP: short Python programs from a sentence and three assertions, which decide (Austin et al., 2021).

Prompt: three worked problems (numbers 2 to 4 of the prompt part), then the problem with its assertions and ``[BEGIN]``; the answer ends at
``[DONE]``. With ``chat`` the problem is asked in turns, answers in code blocks. Scorer: code (pass@1); programs run in the sandbox, after the
row's test_setup_code, which the harness leaves out.
"""

from __future__ import annotations

from pydantic import Field

from luthier.core.task import Task
from luthier.tasks._benchmark import Benchmark, Item, ShotsConfig, build_task
from luthier.tasks._fields import Fields, field, text, texts
from luthier.tasks._source import Source

SOURCE = Source(
    paper="Austin et al. (2021), Program Synthesis with Large Language Models, arXiv:2108.07732",
    licence="CC BY 4.0",
    fields="task_id, text, code, test_list (3), test_setup_code; the published mbpp.jsonl holds all parts",
    hub="hub:google-research-datasets/mbpp",
    matches="mbpp",
)
PARTS = {"unused": range(1, 2), "prompt": range(2, 11), "test": range(11, 511), "validation": range(511, 601)}
EXPERT = "You are an expert Python programmer, and here is your task:"


class Config(ShotsConfig):
    """``shots``: worked problems from the prompt part. ``timeout_s``: what one program may compute."""

    shots: int = Field(default=3, ge=0, le=9)
    timeout_s: float = Field(default=4.0, gt=0.0, le=600)


def define(config: Config) -> Benchmark:
    """How rows become questions."""
    return Benchmark(
        name="mbpp",
        kind="generate",
        source=SOURCE,
        read=_read,
        scorers=(("code", {"as": "pass@1", "timeout_s": config.timeout_s, "fences": config.chat}),),
        pool="prompt",
        folder="full",
        sampler="first",
        delimiter="",
        stop=("[DONE]",),
        within=_part,
    )


def build(config: Config) -> Task:
    """The task. Raises InputError or DataError."""
    return build_task(define(config), config)


def _part(row: Fields) -> str:
    """Which part a problem's number belongs to (Austin et al., section 2.1)."""
    number = row.get("task_id")
    if not isinstance(number, int) and not (isinstance(number, str) and number.isdigit()):
        return ""
    return next((name for name, numbers in PARTS.items() if int(number) in numbers), "train")


def _read(row: Fields) -> Item:
    problem, code = text(row, "text", "prompt"), text(row, "code")
    tests = "\n".join(texts(field(row, "test_list"), "test_list", least=3)[:3])
    return Item(
        text=f"{EXPERT} {problem} Your code should pass these tests:\n\n{tests}\n[BEGIN]\n",
        answer=f"{code}\n[DONE]",
        target=code,
        asked=f"{EXPERT}\n{problem}\nYour code should pass these tests:\n{tests}",
        reply=f"```python\n{code}\n```",
        meta=row,
    )
