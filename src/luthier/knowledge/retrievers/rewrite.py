"""A question that leans on what was said before is made to stand alone."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.document import Hit
from luthier.knowledge.retrievers._query import Query, Search, SearchTools, is_chinese, lines_of

_ASK = {
    "en": "Below is a conversation and its last question. Write that question so that it can be understood without the conversation: "
    "put names in place of pronouns, keep its meaning and language. Write the question only.",
    "zh": "下面是一段对话和最后一个问题。请改写最后的问题,使它脱离对话也能看懂:用名称代替代词,保持原意。只写问题。",
}
_QUESTION = {"en": "Last question: ", "zh": "最后的问题:"}
_LONGEST_TURN = 2000


class Config(EntryConfig):
    """``turns`` of the history are shown, the beginning of each."""

    turns: int = Field(default=6, ge=1, le=50)


def search(query: Query, config: Config, tools: SearchTools, inner: Search) -> list[Hit]:
    """The inner search, asked what the model wrote; the question itself when there is no history, or the model fails."""
    if not query.history:
        return inner(query)
    language = "zh" if is_chinese(query.text) else "en"
    turns = [turn[:_LONGEST_TURN] for turn in query.history[-config.turns :]]
    said = "\n".join([*turns, _QUESTION[language] + query.text])
    written = lines_of(tools.write("rewrite", _ASK[language], said))
    if not written:
        return inner(query)
    text = written[0].removeprefix(_QUESTION[language].strip()).strip()
    return inner(replace(query, text=text or query.text, vector=None))
