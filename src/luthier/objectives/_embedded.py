"""The texts that an embedder learns from: each different one tokenised once, and none longer than the engine embeds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from luthier.core.dataset import Example
from luthier.models.embed import shortened, text_ids
from luthier.models.load import LoadedModel
from luthier.objectives._rows import Limits


@dataclass(slots=True)
class Text:
    """A text's token ids and its number among the different texts of the dataset."""

    number: int
    ids: list[int]


class Texts:
    """The different texts of a dataset, tokenised together."""

    def __init__(self, model: LoadedModel, examples: Iterable[Example]) -> None:
        names = dict.fromkeys(text for e in examples for text in (e.text, *e.positives, *e.negatives))
        every = zip(names, text_ids(model, list(names)), strict=True)
        self._model = model
        self._known = {text: Text(number, ids) for number, (text, ids) in enumerate(every)}

    def __getitem__(self, text: str) -> Text:
        return self._known[text]

    def cut(self, texts: Iterable[Text], length: int) -> bool:
        """Shorten those over ``length``; what is left is always worth training."""
        for text in texts:
            if len(text.ids) > length:
                text.ids = shortened(self._model, text.ids)
        return True


def longest(texts: Iterable[Text], most: int, limits: Limits) -> int:
    """Tokens of the longest text; one over ``most`` counts as over the context (the engine reads a token less of a decoder's)."""
    found = max(len(text.ids) for text in texts)
    return found if found <= most else max(found, limits.context_length + 1)
