"""IFEval: whether instructions that a program can check are followed, such as a least number of words (Zhou et al., 2023).

Prompt: the row's, as it is. Scorer: instruction_following, four times: whether all instructions of a prompt are followed and what share of
single ones is, strictly and loosely (the harness's ``prompt_level_`` and ``inst_level_`` figures).
"""

from __future__ import annotations

from luthier.core.task import Task
from luthier.data.fields import RowError
from luthier.tasks._benchmark import AskedConfig, Benchmark, Item, build_task
from luthier.tasks._fields import Fields, field, mapping, text, texts
from luthier.tasks._source import Source

SOURCE = Source(
    paper="Zhou et al. (2023), Instruction-Following Evaluation for Large Language Models, arXiv:2311.07911",
    licence="Apache-2.0",
    fields="prompt, instruction_id_list, kwargs (one object for each instruction), key",
    hub="hub:google/IFEval",
    matches="ifeval",
)


class Config(AskedConfig):
    """The options of every benchmark. ``chat: true`` is how instruction-tuned models are reported."""


def define(config: Config) -> Benchmark:
    """How rows become questions."""
    return Benchmark(
        name="ifeval",
        kind="generate",
        source=SOURCE,
        read=_read,
        scorers=tuple(
            ("instruction_following", {"as": f"{level}_{mode}", "level": level, "mode": mode})
            for level in ("prompt", "instruction")
            for mode in ("strict", "loose")
        ),
        part="train",
        max_new_tokens=1280,
    )


def build(config: Config) -> Task:
    """The task. Raises InputError or DataError."""
    return build_task(define(config), config)


def _read(row: Fields) -> Item:
    names = texts(field(row, "instruction_id_list"), "instruction_id_list")
    options = field(row, "kwargs")
    if not isinstance(options, list) or len(options) != len(names):
        raise RowError(f"kwargs must be a list of {len(names)} objects, one for each instruction")
    told = [{key: value for key, value in mapping(one, "kwargs").items() if value is not None} for one in options]
    return Item(text(row, "prompt"), meta={**row, "kwargs": told})
