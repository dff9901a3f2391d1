"""HumanEval: write the body of a Python function from its signature and docstring; tests decide (Chen et al., 2021).

Prompt: the beginning of the program, as it is; the answer goes on with it and ends where another top-level statement begins. With ``chat``
the model is asked to solve the problem in a code block. Scorer: code (pass@1), or pass_at_k for each of ``k`` where several samples are
drawn; programs run in the sandbox.
"""

from __future__ import annotations

from pydantic import Field

from luthier.core.errors import InputError
from luthier.core.task import Task
from luthier.tasks._benchmark import AskedConfig, Benchmark, Item, build_task
from luthier.tasks._fields import Fields, text
from luthier.tasks._source import Source

SOURCE = Source(
    paper="Chen et al. (2021), Evaluating Large Language Models Trained on Code, arXiv:2107.03374",
    licence="MIT",
    fields="task_id, prompt, test, entry_point, canonical_solution",
    hub="hub:openai/openai_humaneval",
    matches="humaneval, humaneval_64 (samples=64 k=[2,8,16,32,64] temperature=0.2, without its top_p), humaneval_instruct (chat=true)",
)
STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")


class Config(AskedConfig):
    """``samples`` programs a problem, drawn at ``temperature`` (one is greedy); ``k`` are the figures then reported. ``timeout_s``: what one
    program may compute."""

    samples: int = Field(default=1, ge=1, le=256)
    temperature: float = Field(default=0.2, gt=0.0, le=2.0)
    k: tuple[int, ...] = (1,)
    max_new_tokens: int = Field(default=1024, ge=1)
    timeout_s: float = Field(default=4.0, gt=0.0, le=600)


def define(config: Config) -> Benchmark:
    """How rows become questions."""
    if max(config.k, default=0) > config.samples or min(config.k, default=0) < 1:
        raise InputError(f"humaneval: k must be numbers from 1 to samples ({config.samples}); got {list(config.k)}")
    run = {"timeout_s": config.timeout_s, "fences": config.chat}
    several = tuple(("pass_at_k", {"as": f"pass@{k}", "k": k, **run}) for k in config.k)
    return Benchmark(
        name="humaneval",
        kind="generate",
        source=SOURCE,
        read=_read,
        scorers=(("code", {"as": "pass@1", **run}),) if config.samples == 1 else several,
        max_new_tokens=config.max_new_tokens,
        stop=STOP,
        samples=config.samples,
        temperature=config.temperature if config.samples > 1 else 0.0,
    )


def build(config: Config) -> Task:
    """The task. Raises InputError or DataError."""
    return build_task(define(config), config)


def _read(row: Fields) -> Item:
    prompt = text(row, "prompt")
    text(row, "test")
    text(row, "entry_point")
    asked = (
        f"Write a solution to the following problem and make sure that it passes the tests:\n```python\n{prompt}\n```\n"
    )
    return Item(prompt, target=str(row.get("canonical_solution") or ""), asked=asked, meta=row)
