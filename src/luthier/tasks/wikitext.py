"""WikiText-2: how likely whole Wikipedia pages are (Merity et al., 2017).

Prompt: none; each page, its spaced-out marks put back together, is scored from its beginning in windows of the model's context. Scorers:
perplexity per word and bits_per_byte, counted over the page as published (the harness's ``word_perplexity`` and ``bits_per_byte``).
"""

from __future__ import annotations

import re

from luthier.core.task import Task
from luthier.tasks._benchmark import Benchmark, Item, TextConfig, build_task
from luthier.tasks._fields import Fields, text
from luthier.tasks._source import Source

SOURCE = Source(
    paper="Merity et al. (2017), Pointer Sentinel Mixture Models, arXiv:1609.07843",
    licence="CC BY-SA 3.0",
    fields="page (a whole document)",
    hub="hub:EleutherAI/wikitext_document_level",
    matches="wikitext",
)

_INSIDE = ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."))
_BRACKETS = (
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
)
_REST = (
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


class Config(TextConfig):
    """The options of every benchmark."""


def define(config: Config) -> Benchmark:
    """How rows become questions."""
    return Benchmark(
        name="wikitext",
        kind="likelihood",
        source=SOURCE,
        read=_read,
        scorers=(("perplexity", {"length_of": "original"}), ("bits_per_byte", {"length_of": "original"})),
        folder="wikitext-2-raw-v1",
    )


def build(config: Config) -> Task:
    """The task. Raises InputError or DataError."""
    return build_task(define(config), config)


def _read(row: Fields) -> Item:
    page = text(row, "page")
    whole = detokenise(page)
    return Item("", target=whole, references=(whole, page), asked=whole, meta=row)


def detokenise(page: str) -> str:
    """The page as people write it: WikiText puts spaces around marks, and @ around those inside numbers and words."""
    page = re.sub(r"/' [0-9]/", r"/'[0-9]/", page.replace("s '", "s'"))
    for spaced, plain in _INSIDE:
        page = page.replace(spaced, plain)
    for mark in ":;.!?,":
        page = page.replace(f" {mark} ", f"{mark} ")
    for pattern, plain in _BRACKETS:
        page = re.sub(pattern, plain, page)
    for spaced, plain in _REST:
        page = page.replace(spaced, plain)
    return page
