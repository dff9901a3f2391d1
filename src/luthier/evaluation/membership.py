"""Min-k% probability: whether a model finds texts likelier than it should (Shi et al. 2024, "Detecting Pretraining Data from Large
Language Models", section 3).

A text's figure is the mean log-probability of its k% least likely tokens: a text that was learnt has few surprises left. The figure of
one text says little, because it depends on topic, style and length first. What can be said comes from a comparison with texts of the
same kind and time that the model cannot have seen; and even then a difference may be one of kind (Duan et al. 2024, "Do Membership
Inference Attacks Work on Large Language Models?": close to chance on most pretraining data).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from luthier.core.errors import InputError, UnsupportedError
from luthier.core.run import Progress, no_progress

if TYPE_CHECKING:
    from luthier.models.load import LoadedModel

SHARE = 0.2
_RESAMPLES = 2000
_MOST_TOKENS = 512  # of each text; the figure of a longer beginning hardly differs

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Distribution:
    """The figures of a set of texts, in nats a token: higher is likelier."""

    texts: int
    mean: float
    p10: float
    p50: float
    p90: float

    @staticmethod
    def of(figures: Sequence[float]) -> Distribution:
        """From the texts' figures."""
        low, middle, high = (float(q) for q in np.quantile(figures, [0.1, 0.5, 0.9]))
        return Distribution(len(figures), float(np.mean(figures)), low, middle, high)


@dataclass(frozen=True)
class Membership:
    """``sets`` maps test (and, where known, contaminated, clean and non_members) to its distribution.

    ``auc`` is the chance that a test text is likelier than a non-member, with its interval: 0.5 is no signal. It is None without
    non-members, and then nothing follows from the figures alone.
    """

    model: str
    share: float
    sets: Mapping[str, Distribution]
    auc: Mapping[str, float] | None
    too_short: int
    meaning: str

    def as_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return asdict(self)


def min_k(log_probs: Sequence[float] | Floats, share: float = SHARE) -> float:
    """Mean of the ``share`` lowest token log-probabilities, at least one of them (Shi et al. 2024, equation 1)."""
    if not len(log_probs):
        raise InputError("min-k needs at least one token; got none")
    count = max(1, int(len(log_probs) * share))
    return float(np.sort(np.asarray(log_probs, dtype=np.float64))[:count].mean())


def auc(members: Sequence[float], others: Sequence[float], *, seed: int = 0) -> dict[str, float]:
    """The area under the ROC curve (the Mann-Whitney statistic) with a 95% interval from resampling both sets."""
    first, second = np.asarray(members, dtype=np.float64), np.asarray(others, dtype=np.float64)
    wins = (first[:, None] > second[None, :]) + 0.5 * (first[:, None] == second[None, :])
    draw = np.random.default_rng(seed)

    def drawn(size: int) -> Floats:
        return draw.multinomial(size, np.full(size, 1 / size), size=_RESAMPLES).astype(np.float64)

    a, b = drawn(len(first)), drawn(len(second))
    replicates = ((a @ wins) * b).sum(axis=1) / (len(first) * len(second))
    low, high = np.quantile(replicates, [0.025, 0.975])
    return {"value": float(wins.mean()), "low": float(low), "high": float(high), "level": 0.95}


def membership(
    model: LoadedModel,
    texts: Sequence[str],
    *,
    non_members: Sequence[str] = (),
    contaminated: frozenset[int] = frozenset(),
    share: float = SHARE,
    progress: Progress = no_progress,
) -> Membership:
    """Min-k% figures of ``texts`` under ``model``, read without a chat template, and of ``non_members`` where some are given.

    ``contaminated`` are places in ``texts`` that are known to be in training data; they are then shown apart. Texts under two tokens
    are counted and left out, longer ones are read up to 512 tokens. Raises UnsupportedError for other models than decoders, InputError when no text
    is long enough or ``share`` is out of range.
    """
    if not 0 < share <= 1:
        raise InputError(f"share must be above 0 and at most 1; got {share}")
    if model.architecture != "decoder":
        raise UnsupportedError(
            f"{model.record.name} is an {model.architecture}: it gives no probabilities of a text's tokens"
        )
    found = _figures(model, [*texts, *non_members], share, progress)
    own, others = found[: len(texts)], [f for f in found[len(texts) :] if f is not None]
    tested = [f for f in own if f is not None]
    if not tested:
        raise InputError("min-k needs texts of at least two tokens; got none")
    if non_members and not others:
        raise InputError("no non-member has two tokens")
    sets = {"test": Distribution.of(tested)}
    for name, wanted in (("contaminated", True), ("clean", False)):
        part = [f for i, f in enumerate(own) if f is not None and (i in contaminated) is wanted]
        if part and contaminated:
            sets[name] = Distribution.of(part)
    if others:
        sets["non_members"] = Distribution.of(others)
    area = auc(tested, others) if others else None
    return Membership(model.record.name, share, sets, area, found.count(None), _meaning(area))


def _figures(model: LoadedModel, texts: Sequence[str], share: float, progress: Progress) -> list[float | None]:
    from luthier.models.token_scores import token_scores

    assert model.renderer is not None
    most = min(model.context_length or _MOST_TOKENS, _MOST_TOKENS)
    ids = [model.renderer.prompt_ids(text)[:most] if text.strip() else [] for text in texts]
    places = [place for place, row in enumerate(ids) if len(row) > 1]
    rows = [(ids[place][:1], ids[place][1:]) for place in places]
    scored = token_scores(model.module, rows, model.device, told=lambda done: progress("min-k", done, len(rows)))
    out: list[float | None] = [None] * len(texts)
    for place, scores in zip(places, scored, strict=True):
        out[place] = min_k(scores.log_probs, share)
    return out


def _meaning(area: Mapping[str, float] | None) -> str:
    if area is None:
        return (
            "Nothing follows from these figures alone: name texts of the same kind that the model cannot have seen "
            "(--non-members FILE) to compare with."
        )
    if area["low"] > 0.5:
        return (
            "The model finds the test texts likelier than the non-members. That is what training on them would do, and also what "
            "a difference in topic, style, length or date does."
        )
    if area["high"] < 0.5:
        return "The non-members are likelier than the test texts: the two sets differ in kind, so nothing follows."
    return (
        "No signal: the model does not tell the two sets apart. That does not prove that it never saw the test texts."
    )
