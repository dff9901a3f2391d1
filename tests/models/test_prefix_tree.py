from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import count

import pytest
import torch

from luthier.models.prefix import SHARE_AT_LEAST, PrefixMemory
from luthier.models.prefix_tree import KeysValues, PrefixTree, common_length


def values(tokens: Sequence[int]) -> KeysValues:
    """Keys and values of two layers that say which tokens they are of."""
    keys = torch.tensor(list(tokens), dtype=torch.float32).view(1, 1, -1, 1).repeat(1, 2, 1, 3)
    return [(keys, -keys), (keys + 0.5, keys - 0.5)]


def tokens_of(pieces: list[tuple[int, KeysValues]]) -> list[int]:
    found: list[int] = []
    for length, layers in pieces:
        keys, own = layers[0]
        torch.testing.assert_close(own, -keys)
        torch.testing.assert_close(layers[1][0], keys + 0.5)
        found += keys[0, 0, :length, 0].int().tolist()
    return found


def sequences(seed: int, number: int) -> list[list[int]]:
    """Sequences that often begin like an earlier one."""
    draw, out = random.Random(seed), [[1, 2, 3]]
    for _ in range(number):
        start = draw.choice(out)
        out.append(start[: draw.randint(0, len(start))] + [draw.randrange(4) for _ in range(draw.randint(1, 12))])
    return out


@pytest.mark.parametrize("seed", range(4))
def test_the_longest_common_beginning_is_found_and_right(seed: int) -> None:
    clock = count()
    tree, held = PrefixTree(lambda: next(clock)), {None: [], "one": []}  # type: ignore[var-annotated]
    draw, one_token = random.Random(seed), sum(k.nbytes + v.nbytes for k, v in values([0]))
    for ids in sequences(seed, 120):
        owner = draw.choice([None, "one"])
        best = max((common_length(ids, other) for other in held[owner]), default=0)
        pieces = tree.walk(owner, ids)
        assert tokens_of(pieces) == ids[:best]
        asked: list[tuple[int, int]] = []

        def read(start: int, end: int, ids: list[int] = ids, asked: list[tuple[int, int]] = asked) -> KeysValues:
            asked.append((start, end))
            return values(ids[start:end])

        tree.add(owner, ids, read, [])
        assert asked == ([(best, len(ids))] if best < len(ids) else [])  # only what is new is copied
        held[owner].append(ids)
        assert tokens_of(tree.walk(owner, ids)) == ids
    distinct = {(owner, tuple(ids[:n])) for owner, rows in held.items() for ids in rows for n in range(1, len(ids) + 1)}
    assert tree.nbytes == len(distinct) * one_token  # what several begin with is held once
    tree.forget("one")
    assert tree.walk("one", held["one"][-1]) == []
    assert tree.nbytes == sum(owner is None for owner, _ in distinct) * one_token
    while (leaf := tree.oldest()) is not None:
        tree.drop(leaf)
    assert tree.nbytes == 0 and tree.walk(None, held[None][-1]) == []


def test_the_memory_is_bounded_and_keeps_what_is_used() -> None:
    one_token = sum(k.nbytes + v.nbytes for k, v in values([0]))
    memory = PrefixMemory(max_bytes=200 * one_token)
    system = [9] * 40
    memory.put(None, [8] * 30, values([8] * 30))  # a whole prompt, as scoring holds it
    for number in range(1, 60):
        ids = [*system, *[100 + number] * 10]
        found = sum(tokens for tokens, _ in memory.pieces(None, ids, 0))
        assert found == (40 if number > 1 else 0)
        memory.add(None, ids, lambda start, end, ids=ids: values(ids[start:end]), [])  # type: ignore[misc]
        assert memory.nbytes <= memory.max_bytes
    assert memory.longest(None, [8] * 30) == (0, None)  # the least recently used went first
    assert sum(tokens for tokens, _ in memory.pieces(None, [*system, *[159] * 10], 0)) == 50
    assert sum(tokens for tokens, _ in memory.pieces(None, [*system, *[101] * 10], 0)) == 40
    assert memory.pieces("adapter", [*system, 1], 0) == []  # other weights, other keys
    assert memory.pieces(None, system[: SHARE_AT_LEAST - 1], 0) == []  # not worth it


def test_scoring_finds_what_answers_left_and_the_other_way_round() -> None:
    memory, soft = PrefixMemory(), values([-7, -8])
    prompt = list(range(30))
    memory.add("soft", prompt[:20], lambda start, end: values(prompt[start:end]), soft)
    memory.add("soft", prompt, lambda start, end: values(prompt[start:end]), soft)
    length, found = memory.longest("soft", [*prompt[:25], 99])
    assert length == 25 and found is not None
    assert tokens_of([(27, found)]) == [-7, -8, *prompt[:25]]  # a prompt's keys and values begin with the soft prompt
    memory.put("soft", [*prompt, 50], values([-7, -8, *prompt, 50]))
    assert tokens_of(memory.pieces("soft", [*prompt, 50, 51], 2)) == [*prompt, 50]
