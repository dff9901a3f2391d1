"""An answer from the first passages, then refined with the next ones, a call for each group of them."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from luthier.core.document import Hit
from luthier.core.message import Conversation
from luthier.knowledge.answers._fit import fitted
from luthier.knowledge.answers._gather import gathered
from luthier.knowledge.answers._talk import AnswerTools, Say, ShownConfig, Talk, Written, not_found, plainly
from luthier.knowledge.cite import clean
from luthier.knowledge.prompt import Question, draft, is_not_found, rag_prompt
from luthier.strategies._thinking import Ask, only

_AGAIN = {
    "en": "\n\nThis is the answer so far, from earlier passages:\n{draft}\nWrite the whole answer again, corrected and completed by the passages above, "
    "and keep the numbers in brackets. If they add nothing to it, repeat it as it is.",
    "zh": "\n\n这是根据前面的段落得到的答案:\n{draft}\n请根据上面的段落修正、补充后重新写出完整的答案,保留方括号中的编号。如果上面的段落没有补充,照原样重复。",
}


class Config(ShownConfig):
    """Each call shows ``at_once`` passages and the answer so far; there are at most ``most_calls`` of them, and the passages that are left then
    are left out.

    ``order`` is that in which passages are shown: the best first, the best last, or (edges) the best at both ends, since models overlook
    what stands in the middle (Liu et al. 2023, Lost in the Middle, https://arxiv.org/abs/2307.03172). ``instruction`` takes the place of the
    usual one; ``{not_found}`` in it becomes the sentence that says that the documents do not hold the answer. ``compress`` shortens what was
    found first (Xu et al. 2023, RECOMP, https://arxiv.org/abs/2310.04408): extractive keeps the sentences that are most like the question, up to
    the share ``keep`` of all tokens; written has the model write out of each passage what answers the question, in one call for each.
    """

    at_once: int = Field(default=2, ge=1, le=50)
    most_calls: int = Field(default=5, ge=1, le=50)


def answer(question: Question, config: Config, tools: AnswerTools) -> Talk:
    """The last refinement, streamed."""
    hits = yield from gathered(question, config, tools)
    if not hits:
        return not_found(question)
    groups = [hits[at : at + config.at_once] for at in range(0, len(hits), config.at_once)]
    if len(groups) > config.most_calls:
        tools.note("left_out", passages=sum(map(len, groups[config.most_calls :])))
    groups = groups[: config.most_calls]
    shown: list[Hit] = []
    said = ""
    for number, group in enumerate(groups, 1):
        prompt, fresh = _prompt(question, group, len(shown), said, config, tools)
        shown += fresh
        if number == len(groups):
            made = yield Say(Ask(prompt, tools.sampling), tuple(shown))
            return Written(made, tuple(shown))
        reply = only((yield [Ask(prompt, plainly(tools.sampling))]))
        said, _ = clean(reply.text, len(shown))
        tools.note("refine", passages=len(shown), said=said)
    raise AssertionError("unreachable: there is a last group")


def _prompt(
    question: Question, hits: Sequence[Hit], before: int, said: str, config: Config, tools: AnswerTools
) -> tuple[Conversation, list[Hit]]:
    """The prompt for a group of passages, which are numbered on, and those of them that fit."""
    again = "" if not said or is_not_found(said) else _AGAIN[question.language].replace("{draft}", draft(said))

    def build(question: Question, hits: Sequence[Hit]) -> Conversation:
        return rag_prompt(question, hits, instruction=config.instruction, first=before + 1, then=again)

    question, kept = fitted(question, hits, build, tools, config.order)
    return build(question, kept), kept
