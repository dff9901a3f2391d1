from __future__ import annotations

import random
from itertools import combinations

import pytest

from luthier.core.dataset import Example
from luthier.core.errors import InputError
from luthier.core.message import Message
from luthier.data.dedupe import MAX_CHARACTERS, content_key, groups, near_groups, normalise
from luthier.data.read import examples_from_rows


def similarity(one: str, other: str) -> float:
    """Jaccard of the sets of five-character runs, in the plainest way."""
    first, second = ({text[at : at + 5] for at in range(max(len(text) - 4, 1))} for text in (one, other))
    return len(first & second) / len(first | second)


def test_normalised_text() -> None:
    assert normalise("  ＲＥＦＵＮＤ\n  the\u00a0Straße ") == "refund the strasse"


def test_content_key_is_what_is_asked() -> None:
    talk = (Message("system", "S"), Message("user", "Q"), Message("assistant", "A"), Message("user", "R"))
    assert content_key(Example("", talk)) == "s\nq\nr"


def test_groups_keep_order() -> None:
    assert groups(["a", "b", "a", "c", "b", "a"]) == [[0, 2, 5], [1, 4], [2 + 1]]
    assert groups([]) == []


def test_near_duplicates_are_those_that_a_full_comparison_finds() -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 9))) for _ in range(300)]
    texts = [" ".join(rng.choices(words, k=rng.randint(3, 40))) for _ in range(150)]
    for text in texts[:60]:  # copies with one or more words changed: some alike enough, some not
        changed = text.split()
        for _ in range(rng.randint(1, 3)):
            changed[rng.randrange(len(changed))] = rng.choice(words)
        texts.append(" ".join(changed))
    pairs = {(a, b) for a, b in combinations(range(len(texts)), 2) if similarity(texts[a], texts[b]) >= 0.8}
    found = near_groups(texts)
    together = {(a, b) for group in found for a, b in combinations(group, 2)}
    assert 20 < len(pairs) < 60
    assert len(pairs - together) <= 1
    alone = {row for group in found for row in group} - {row for pair in pairs for row in pair}
    assert not alone


def test_scripts_without_spaces_and_short_texts() -> None:
    texts = [
        "我的包裹还没有到,请帮我查一下它现在在哪里吧",
        "我的包裹还没有到,请帮我查一下它现在在哪里",
        "好的",
        "好的!",
        "",
        "a",
    ]
    assert near_groups(texts) == [[0, 1]]
    assert near_groups([]) == []
    assert near_groups(["same text here", "same text here"]) == [[0, 1]]


def test_long_texts_are_compared_by_their_beginnings() -> None:
    rng = random.Random(0)
    start = "".join(rng.choices("abcdefghij ", k=MAX_CHARACTERS))
    assert near_groups([start + "one end", start + "another end" * 500]) == [[0, 1]]


def test_threshold_is_checked() -> None:
    with pytest.raises(InputError, match=r"threshold must be between 0\.5 and 1"):
        near_groups(["a"], threshold=0.1)


def test_scored_texts_are_the_same_in_either_order_and_pairs_by_their_anchor() -> None:
    def key(row: dict[str, object]) -> str:
        return content_key(examples_from_rows([("f", 1, row)], name="d").examples[0])

    assert key({"sentence1": "A b", "sentence2": "c", "score": 1}) == key(
        {"sentence1": "c", "sentence2": "a B", "score": 0}
    )
    assert key({"sentence1": "a", "sentence2": "b", "score": 1}) != key(
        {"sentence1": "a", "sentence2": "c", "score": 1}
    )
    assert key({"anchor": "a", "positive": "b"}) == key({"query": "A", "pos": ["c"], "neg": ["d"]}) == "a"
