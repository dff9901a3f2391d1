"""All passages that fit in one prompt, one call."""

from __future__ import annotations

from luthier.knowledge.answers._fit import fitted, prompts
from luthier.knowledge.answers._gather import gathered
from luthier.knowledge.answers._talk import AnswerTools, Say, ShownConfig, Talk, Written, not_found
from luthier.knowledge.prompt import Question
from luthier.strategies._thinking import Ask

TOOLS = True


class Config(ShownConfig):
    """The passages stand in one prompt.

    ``order`` is that in which passages are shown: the best first, the best last, or (edges) the best at both ends, since models overlook
    what stands in the middle (Liu et al. 2023, Lost in the Middle, https://arxiv.org/abs/2307.03172). ``instruction`` takes the place of the
    usual one; ``{not_found}`` in it becomes the sentence that says that the documents do not hold the answer. ``compress`` shortens what was
    found first (Xu et al. 2023, RECOMP, https://arxiv.org/abs/2310.04408): extractive keeps the sentences that are most like the question, up to
    the share ``keep`` of all tokens; written has the model write out of each passage what answers the question, in one call for each.
    """


def answer(question: Question, config: Config, tools: AnswerTools) -> Talk:
    """The model's answer from what the search found; without a call when that is nothing."""
    hits = yield from gathered(question, config, tools)
    if not hits:
        return not_found(question)
    build = prompts(config)
    question, shown = fitted(question, hits, build, tools, config.order)
    made = yield Say(Ask(build(question, shown), tools.sampling), tuple(shown))
    return Written(made, tuple(shown))
