"""From an answer to a program with its tests, and whether it passes them: what ``code`` and ``pass_at_k`` share.

Two forms of tests are known, by the keys of the example's ``meta``. HumanEval (Chen et al., 2021): ``prompt`` is code that the answer
goes on with, ``test`` defines ``check``, and ``entry_point`` names the function that it is called with; a ``test`` without ``check`` is run
as it is. MBPP (Austin et al., 2021): ``test_list`` holds assert statements, after ``test_setup_code`` or ``test_imports``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.errors import DataError
from luthier.scorers._sandbox import Limits, Outcome, run_programs
from luthier.scorers._score import Answer, Resources, Target
from luthier.strategies._judge_reply import without_thoughts

_FENCE = re.compile(
    r"^[ \t]*(?:```|~~~)[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*(?:```|~~~)[ \t]*$|\Z)", re.DOTALL | re.MULTILINE
)
_RAN: WeakKeyDictionary[Resources, dict[tuple[str, Limits], Outcome]] = WeakKeyDictionary()


class RunConfig(EntryConfig):
    """How programs are run. ``timeout_s`` is what one may compute; waiting counted in, it gets 2.5 times as long (a busy machine makes
    programs wait). ``memory_mb`` is its address space, the interpreter included. ``workers`` programs run at once (0: one a core).
    ``fences``: code is taken out of a reply's Markdown block; a reply that starts with an indented line is code as it stands."""

    timeout_s: float = Field(default=4.0, gt=0, le=600)
    memory_mb: int = Field(default=512, ge=64)
    workers: int = Field(default=0, ge=0, le=256)
    fences: bool = True

    @property
    def limits(self) -> Limits:
        """The sandbox's limits."""
        return Limits(cpu_s=math.ceil(self.timeout_s), wall_s=2.5 * self.timeout_s, memory_mb=self.memory_mb)


def run_samples(
    answers: Sequence[Answer], targets: Sequence[Target], config: RunConfig, resources: Resources
) -> list[list[Outcome]]:
    """How the program of each sample of each answer ended. Equal programs run once, also for a second scorer of the same run.

    Raises DataError for an example without tests.
    """
    programs = [
        [assemble(text, target, fences=config.fences) for text in answer.samples or (answer.text,)]
        for answer, target in zip(answers, targets, strict=True)
    ]
    limits = config.limits
    ran = _RAN.setdefault(resources, {})
    new = list(dict.fromkeys(p for row in programs for p in row if (p, limits) not in ran))
    for program, outcome in zip(new, run_programs(new, limits, workers=config.workers or None), strict=True):
        ran[program, limits] = outcome
    return [[ran[program, limits] for program in row] for row in programs]


def assemble(text: str, target: Target, *, fences: bool = True) -> str:
    """The whole program for one answer. Raises DataError when the example's ``meta`` has no tests, or lacks what they need."""
    meta = target.meta
    entry = str(meta.get("entry_point") or "")
    code = extract_code(without_thoughts(text), entry) if fences else text
    if meta.get("test"):
        test = str(meta["test"])
        if not re.search(r"^def check\(", test, re.MULTILINE):
            return f"{_joined(meta, code, entry)}\n\n{test}\n"
        if not entry:
            raise _lacks(target, "entry_point", "the function that check is called with")
        return f"{_joined(meta, code, entry)}\n\n{test}\n\ncheck({entry})\n"
    tests = _tests(meta)
    if not tests:
        raise _lacks(target, "test or test_list", "the tests that a program must pass")
    setup = meta.get("test_setup_code") or "\n".join(meta.get("test_imports") or ())
    return "\n\n".join(part for part in (code, str(setup), "\n".join(tests)) if part) + "\n"


def extract_code(text: str, entry_point: str = "") -> str:
    """The code of a reply: the Markdown block that defines ``entry_point``, else the first block, else the text itself.

    A reply that starts with an indented line goes on with the prompt's code and is taken as it stands.
    """
    first = next((line for line in text.splitlines() if line.strip()), "")
    if first[:1] in (" ", "\t"):
        return text
    blocks: list[tuple[str, str]] = _FENCE.findall(text)
    blocks = [block for block in blocks if block[0].lower() in ("python", "python3", "py", "")] or blocks
    if not blocks:
        return text
    defining = [code for _, code in blocks if entry_point and _defines(code, entry_point)]
    return defining[0] if defining else blocks[0][1]


def _joined(meta: Mapping[str, object], code: str, entry: str) -> str:
    """The prompt and what goes on from it; where the answer writes the function anew, only what comes before it in the prompt."""
    prompt = str(meta.get("prompt") or "")
    place = _defines(prompt, entry) if entry and _defines(code, entry) else None
    return prompt[: place.start()] + code if place else prompt + code


def _defines(code: str, name: str) -> re.Match[str] | None:
    return re.search(rf"^(?:async[ \t]+)?def[ \t]+{re.escape(name)}[ \t]*\(", code, re.MULTILINE)


def _tests(meta: Mapping[str, object]) -> list[str]:
    tests = meta.get("test_list")
    if isinstance(tests, str):  # some copies hold the list as text
        try:
            tests = json.loads(tests)
        except ValueError:
            tests = [tests]
    return [str(test) for test in tests] if isinstance(tests, (list, tuple)) else []


def _lacks(target: Target, key: str, what: str) -> DataError:
    name = target.meta.get("task_id") or target.meta.get("id") or " ".join(target.input.split())[:60]
    return DataError(
        f"example {name!r}: meta.{key} is needed: {what}; it has {', '.join(sorted(target.meta)) or 'nothing'}"
    )
