"""The texts that a strategy puts around a question: from the prompt catalogue, kept in its config, in the question's language."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from luthier.data.prompts import StoredPrompt, chinese_sister, is_chinese, load_prompt

if TYPE_CHECKING:
    from luthier.store.database import Store

Texts = Mapping[str, Mapping[str, str]]
"""Role -> its template's text, and ``source`` (name, version and digest). Roles that end in ``_zh`` are for Chinese questions."""

_ZH = "_zh"


def settle_texts(templates: Mapping[str, str], given: Texts, store: Store | None = None) -> dict[str, dict[str, str]]:
    """Text and source of each role's template (role -> ``NAME`` or ``NAME@VERSION``), and of its Chinese sister; ``given`` ones stay.

    Raises NotFoundError for a template that is not in the catalogue, InputError for one that is a task's prompt.
    """
    out = {role: dict(text) for role, text in given.items()}
    for role, name in templates.items():
        if role in out:
            continue
        out[role] = _settled(load_prompt(name, store))
        sister = chinese_sister(name, store)
        if sister is not None:
            out[role + _ZH] = _settled(sister)
    return out


def _settled(prompt: StoredPrompt) -> dict[str, str]:
    own = {place: f"{{{place}}}" for place in prompt.placeholders}  # as they are: they are filled in at each question
    return {"source": f"{prompt.label} sha256:{prompt.digest}", "text": prompt.fill(**own)}


def say(texts: Texts, role: str, like: str, **values: str) -> str:
    """The role's text in the language of ``like``, its placeholders replaced by ``values``."""
    chinese = role + _ZH
    text = texts[chinese if chinese in texts and is_chinese(like) else role]["text"]
    return re.sub(r"\{([a-z][a-z0-9_]*)\}", lambda found: values.get(found[1], found[0]), text)
