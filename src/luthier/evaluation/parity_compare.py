"""What two sides of a parity check said, compared: to the token where they must be equal, within a tolerance where they compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from luthier.core.errors import MismatchError
from luthier.evaluation.parity_prompts import Case

if TYPE_CHECKING:
    from luthier.data.render import Renderer
    from luthier.models.token_scores import TokenScores

Verdict = Literal["equal", "within", "differs", "shown", "not offered"]

IDS, TOKENIZER, STOPS, MASK = "prompt ids", "own tokenizer", "stop tokens", "loss mask"
LOG_PROBS, TOP_1, ANSWERS, COUNTS = "log-probabilities", "likeliest token", "greedy answers", "prompt token counts"
EXACT = frozenset({IDS, TOKENIZER, STOPS, MASK, COUNTS})
"""What is equal or wrong; a promotion is refused when it is not."""


@dataclass(frozen=True)
class Tolerance:
    """Largest difference of a token's log-probability in nats, largest mean difference, and least share of equal likeliest tokens."""

    worst: float
    mean: float
    top_1: float


TOLERANCES: Mapping[str, Tolerance] = {
    "fp32": Tolerance(0.001, 0.001, 0.99),
    "F32": Tolerance(0.001, 0.001, 0.99),
    "F16": Tolerance(0.1, 0.02, 0.95),
    "fp16": Tolerance(0.1, 0.02, 0.95),
    "bf16": Tolerance(1.0, 0.1, 0.9),
    "BF16": Tolerance(1.0, 0.1, 0.9),
    "Q8_0": Tolerance(1.5, 0.25, 0.85),
    "Q4_1": Tolerance(6.0, 0.8, 0.6),
    "Q4_0": Tolerance(6.0, 0.8, 0.6),
}
"""Against torch in fp32. Four-bit weights are another model in all but name: their tolerance finds damage, not rounding."""


@dataclass(frozen=True)
class Comparison:
    """One line of the report: how ``right`` compares with ``left`` in ``what``.

    ``equal`` of ``of`` items (prompts, tokens) are the same. ``worst`` is the largest difference and ``mean`` the mean one, in nats, where
    numbers are compared; ``where`` names the prompt and the position of the worst or first difference.
    """

    left: str
    right: str
    what: str
    equal: int
    of: int
    verdict: Verdict
    worst: float | None = None
    mean: float | None = None
    where: str = ""
    tolerance: str = "equal"
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return asdict(self)


# ---- what must be equal


def compare_ids(
    names: tuple[str, str],
    cases: Sequence[Case],
    left: Sequence[Sequence[int]],
    right: Sequence[Sequence[int] | None],
    renderer: Renderer,
    what: str = IDS,
) -> Comparison:
    """Token ids of each prompt; None on the right is a prompt that this side could not be asked."""
    asked = [(c, list(a), list(b)) for c, a, b in zip(cases, left, right, strict=True) if b is not None]
    wrong = [(c, a, b) for c, a, b in asked if a != b]
    if not asked:
        return Comparison(*names, what, 0, 0, "not offered")
    where = ""
    if wrong:
        case, a, b = wrong[0]
        at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        said = [
            f"{ids[at]} {renderer.decode([ids[at]], special=True)!r}" if at < len(ids) else "nothing" for ids in (a, b)
        ]
        where = f"{case.name}, token {at + 1}: {said[0]} against {said[1]}"
    left_out = len(cases) - len(asked)
    note = f"{left_out} prompts hold markup as text and were left out" if left_out else ""
    return Comparison(
        *names, what, len(asked) - len(wrong), len(asked), "differs" if wrong else "equal", where=where, note=note
    )


def compare_training(renderer: Renderer, cases: Sequence[Case]) -> list[Comparison]:
    """What the sft objective reads of each case against what serving would send and score: ids, mask, and how an answer ends."""
    names = ("renderer", "training")
    found: dict[str, list[str]] = {IDS: [], MASK: [], STOPS: []}
    asked = [case for case in cases if case.answer.strip()]
    for case in asked:
        for what, why in _training_faults(renderer, case).items():
            found[what].append(f"{case.name}: {why}")
    return [
        Comparison(
            *names,
            what,
            len(asked) - len(faults),
            len(asked),
            ("differs" if faults else "equal") if asked else "not offered",
            where=faults[0] if faults else "",
        )
        for what, faults in found.items()
    ]


def _training_faults(renderer: Renderer, case: Case) -> dict[str, str]:
    """What is wrong with a case, by what it concerns; empty when training and serving agree."""
    prompt = renderer.prompt_ids(case.prompt)
    answer = renderer.continuation_ids(case.answer, ends_turn=True)
    try:
        ids, trained = _training_row(renderer, case)
    except MismatchError as error:
        return {MASK: error.message}
    out = {}
    if ids[: len(prompt)] != prompt:
        at = next(i for i, (a, b) in enumerate(zip(ids, prompt, strict=False)) if a != b)
        out[IDS] = f"token {at + 1} is {ids[at]} in training and {prompt[at]} in serving"
    wanted = list(range(len(prompt), len(prompt) + len(answer)))
    if trained != wanted or ids[len(prompt) : len(prompt) + len(answer)] != answer:
        odd = sorted(set(trained) ^ set(wanted))
        out[MASK] = f"position {odd[0] + 1} bears loss on one side only" if odd else "the answer's ids differ"
    if not trained or ids[trained[-1]] not in renderer.stop_ids:
        last = f"{ids[trained[-1]]} {renderer.decode([ids[trained[-1]]], special=True)!r}" if trained else "nothing"
        out[STOPS] = f"the answer ends with {last}, which is none of the stop tokens {sorted(renderer.stop_ids)}"
    return out


def _training_row(renderer: Renderer, case: Case) -> tuple[list[int], list[int]]:
    """Ids of the conversation, and the positions whose tokens bear loss, as the sft objective makes them."""
    import torch

    from luthier.core.dataset import Dataset, Example
    from luthier.core.message import Message
    from luthier.core.model import ModelRecord
    from luthier.core.task import PromptTemplate
    from luthier.models.load import LoadedModel
    from luthier.objectives import sft
    from luthier.objectives._rows import Limits

    record = ModelRecord("parity", "base", "decoder", "")
    nowhere, kind = torch.device("meta"), torch.float32
    model = LoadedModel(record, record, None, renderer.tokenizer, renderer, nowhere, kind, "decoder")
    whole = Dataset("parity", "chat", (Example("", (*case.prompt, Message("assistant", case.answer))),))
    row = sft.prepare(whole, model, PromptTemplate(), sft.Config(turns="last"), Limits(10**9))[0]
    return row.ids, [place + 1 for place in row.places]


def compare_stops(
    names: tuple[str, str], renderer: Renderer, ends: frozenset[int], probed: frozenset[int] | None = None
) -> Comparison:
    """The renderer's stop tokens against the tokens at which an engine ended. Missing ones are a fault; further ones among the special
    tokens (``probed``), at which llama.cpp stops by their name, are told."""
    missing, extra = sorted(renderer.stop_ids - ends), sorted(ends - renderer.stop_ids)

    def told(ids: Sequence[int]) -> str:
        return ", ".join(f"{i} {renderer.decode([i], special=True)!r}" for i in ids)

    return Comparison(
        *names,
        STOPS,
        len(renderer.stop_ids) - len(missing),
        len(renderer.stop_ids),
        "differs" if missing else "equal",
        where=f"answers do not end at {told(missing)}" if missing else "",
        note=f"of {len(probed)} special tokens it also stops at {told(extra)}" if extra and probed else "",
    )


# ---- what may differ by rounding


def compare_scores(
    names: tuple[str, str],
    cases: Sequence[Case],
    rows: Sequence[Sequence[int]],
    left: Sequence[TokenScores],
    right: Sequence[TokenScores],
    tolerance: Tolerance,
    renderer: Renderer,
) -> list[Comparison]:
    """Log-probabilities of the same tokens (NaN: not reported), and whether the same token was likeliest in their places (-1: not
    reported)."""
    gaps = [np.abs(a.log_probs - b.log_probs) for a, b in zip(left, right, strict=True)]
    flat = np.concatenate([gap[~np.isnan(gap)] for gap in gaps]) if gaps else np.zeros(0)
    if not len(flat):
        return [Comparison(*names, LOG_PROBS, 0, 0, "not offered")]
    worst, mean = float(flat.max()), float(flat.mean())
    number = max(range(len(gaps)), key=lambda i: -1.0 if np.isnan(gaps[i]).all() else float(np.nanmax(gaps[i])))
    at = int(np.nanargmax(gaps[number]))
    token = renderer.decode([rows[number][at]], special=True)
    good = worst <= tolerance.worst and mean <= tolerance.mean
    told = [
        Comparison(
            *names,
            LOG_PROBS,
            int((flat <= tolerance.worst).sum()),
            len(flat),
            "within" if good else "differs",
            worst,
            mean,
            f"{cases[number].name}, answer token {at + 1} {token!r}",
            f"each {tolerance.worst:g}, mean {tolerance.mean:g}",
        )
    ]
    pairs = [
        (number, i, int(a), int(b))
        for number, (x, y) in enumerate(zip(left, right, strict=True))
        for i, (a, b) in enumerate(zip(x.likeliest, y.likeliest, strict=True))
        if b >= 0
    ]
    odd = [pair for pair in pairs if pair[2] != pair[3]]
    if pairs:
        share = 1 - len(odd) / len(pairs)
        verdict: Verdict = "equal" if not odd else "within" if share >= tolerance.top_1 else "differs"
        where = ""
        if odd:
            said = [repr(renderer.decode([i], special=True)) for i in odd[0][2:]]
            where = f"{cases[odd[0][0]].name}, answer token {odd[0][1] + 1}: {said[0]} against {said[1]}"
        told.append(
            Comparison(
                *names,
                TOP_1,
                len(pairs) - len(odd),
                len(pairs),
                verdict,
                where=where,
                tolerance=f"{tolerance.top_1:.0%}",
            )
        )
    return told


def compare_numbers(
    names: tuple[str, str],
    what: str,
    cases: Sequence[Case],
    left: Sequence[float],
    right: Sequence[float],
    tolerance: Tolerance,
) -> Comparison:
    """The mean log-probability of each case's answer: a quarter of what a single token may differ by, as errors cancel in part."""
    limit = tolerance.worst / 4
    gaps = [abs(a - b) for a, b in zip(left, right, strict=True)]
    if not gaps:
        return Comparison(*names, what, 0, 0, "not offered")
    at = max(range(len(gaps)), key=gaps.__getitem__)
    near = sum(gap <= limit for gap in gaps)
    verdict: Verdict = "within" if near == len(gaps) else "differs"
    mean = sum(gaps) / len(gaps)
    told = f"each {limit:g}"
    return Comparison(*names, what, near, len(gaps), verdict, gaps[at], mean, cases[at].name, told)


def compare_answers(
    names: tuple[str, str], cases: Sequence[Case], left: Sequence[Sequence[Any]], right: Sequence[Sequence[Any]]
) -> Comparison:
    """Greedy answers. Only shown: one near tie is enough for two texts to part, whatever the rounding."""
    wrong = [(case, a, b) for case, a, b in zip(cases, left, right, strict=True) if list(a) != list(b)]
    where = ""
    if wrong:
        case, a, b = wrong[0]
        at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        where = f"{case.name}, from answer token {at + 1} on" if not isinstance(a, str) else case.name
    count = len(cases)
    return Comparison(
        *names, ANSWERS, count - len(wrong), count, "shown" if wrong else "equal", where=where, tolerance="-"
    )
