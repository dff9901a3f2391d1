"""What each passage says to the question is written down by itself; one answer is made of these notes."""

from __future__ import annotations

from pydantic import Field

from luthier.knowledge.answers._fit import fitted, prompts
from luthier.knowledge.answers._gather import gathered
from luthier.knowledge.answers._talk import AnswerTools, Say, ShownConfig, Talk, Written, not_found
from luthier.knowledge.answers._write import noted
from luthier.knowledge.prompt import Question
from luthier.strategies._thinking import Ask


class Config(ShownConfig):
    """A call for each of the best ``most_calls - 1`` passages makes its note of at most ``note_tokens`` tokens, and one more the answer.
    Passages that say nothing to the question are left out.

    ``order`` is that in which passages are shown: the best first, the best last, or (edges) the best at both ends, since models overlook
    what stands in the middle (Liu et al. 2023, Lost in the Middle, https://arxiv.org/abs/2307.03172). ``instruction`` takes the place of the
    usual one; ``{not_found}`` in it becomes the sentence that says that the documents do not hold the answer. ``compress`` shortens what was
    found first (Xu et al. 2023, RECOMP, https://arxiv.org/abs/2310.04408): extractive keeps the sentences that are most like the question, up to
    the share ``keep`` of all tokens; written has the model write out of each passage what answers the question, in one call for each.
    """

    most_calls: int = Field(default=9, ge=2, le=100)
    note_tokens: int = Field(default=128, ge=16, le=4096)


def answer(question: Question, config: Config, tools: AnswerTools) -> Talk:
    """The answer from the notes, streamed; its marks point to the passages that the notes are of."""
    hits = yield from gathered(question, config, tools)
    if len(hits) >= config.most_calls:
        tools.note("left_out", passages=len(hits) - config.most_calls + 1)
    notes = yield from noted(question, hits[: config.most_calls - 1], config.note_tokens, tools)
    if not notes:
        return not_found(question)
    build = prompts(config)
    question, shown = fitted(question, notes, build, tools, config.order)
    made = yield Say(Ask(build(question, shown), tools.sampling), tuple(shown))
    return Written(made, tuple(shown))
