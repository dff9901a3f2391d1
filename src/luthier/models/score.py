"""Log-likelihood of continuations, with every shared token computed once.

All continuations of a prompt go through the model in one row: the prompt, then the continuations as a tree in which common
beginnings are one branch (a token tree as in SpecInfer, Miao et al. 2023, section 4). Position ids restart after the prompt on each
branch, and the attention mask lets a token see the prompt and its own branch only, so that the numbers are those of separate
forwards. What all rows of a call begin with (instruction, few-shot examples) is computed once and its keys and values are shared.
Logits are computed only where a continuation reads them, log-softmax in fp32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from luthier.data.batch import order_by_length
from luthier.models.decode import attends_fully, hidden_states, logits
from luthier.models.prefix import (
    SHARE_AT_LEAST,
    KeysValues,
    PrefixMemory,
    common_prefix,
    compute,
    expanded,
    shared_prefix,
)

_LOGIT_ROWS = 512
"""Positions whose logits are held at once without gradients (512 x 50,000 x 4 bytes is 100 MB)."""


class Row(NamedTuple):
    """One prompt and what may follow it, as token ids. The prompt has at least one token."""

    prompt: Sequence[int]
    continuations: Sequence[Sequence[int]]


@dataclass(frozen=True)
class _Tree:
    """A packed row: tree tokens after the prompt, and where each continuation's tokens are predicted.

    ``parents[i]`` is the tree index of the token before ``tokens[i]`` (-1: the prompt's last). ``reads`` lists, over all
    continuations in turn, (continuation, tree index that predicts or -1, token predicted).
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    reads: tuple[tuple[int, int, int], ...]
    count: int


def _tree(continuations: Iterable[Sequence[int]]) -> _Tree:
    nodes: dict[tuple[int, int], int] = {}  # (parent, token) -> index
    depths: list[int] = []
    reads: list[tuple[int, int, int]] = []
    count = 0
    for number, continuation in enumerate(continuations):
        count += 1
        at = -1
        for place, token in enumerate(continuation):
            reads.append((number, at, token))
            if place == len(continuation) - 1:
                break  # nothing reads what follows the last token
            key = (at, token)
            if key not in nodes:
                nodes[key] = len(nodes)
                depths.append(place)
            at = nodes[key]
    parents, tokens = zip(*nodes, strict=True) if nodes else ((), ())
    return _Tree(tokens, parents, tuple(depths), tuple(reads), count)


def packed_log_probs(module: Any, rows: Sequence[Row], device: torch.device) -> list[torch.Tensor]:
    """Summed log-probability of each continuation, differentiable: one fp32 vector (continuations,) a row.

    One forward for all rows, after one for what all prompts begin with (the instruction); its gradient is the sum over the rows.
    """
    if attends_fully(module):
        prompts = [row.prompt for row in rows]
        shared = common_prefix(prompts) if len(rows) > 1 else 0
        if shared < SHARE_AT_LEAST:
            return _forward(module, rows, device, None, 0)
        prefix = compute(module, prompts[0][:shared], device, 0, None)
        return _forward(module, rows, device, _cache(prefix, shared, len(rows)), shared)
    single = [Row(row.prompt, [continuation]) for row in rows for continuation in row.continuations]
    flat = torch.cat(_forward(module, single, device, None, 0)) if single else torch.zeros(0, device=device)
    return list(torch.split(flat, [len(row.continuations) for row in rows]))


def score_rows(
    module: Any, rows: Sequence[Row], device: torch.device, *, max_batch_tokens: int = 1024
) -> list[list[float]]:
    """Summed log-probability of each continuation, in nats; no gradients. See ``score_batches``."""
    out: list[list[float]] = [[]] * len(rows)
    for scored in score_batches(module, rows, device, max_batch_tokens=max_batch_tokens):
        for index, values in scored:
            out[index] = values
    return out


@torch.inference_mode()
def score_batches(
    module: Any,
    rows: Sequence[Row],
    device: torch.device,
    *,
    max_batch_tokens: int = 1024,
    memory: PrefixMemory | None = None,
    owner: str | None = None,
) -> Iterator[list[tuple[int, list[float]]]]:
    """One batch at a time: (row index, its continuations' summed log-probabilities) of each row in it.

    Batches hold rows of like lengths, at most ``max_batch_tokens`` tokens with padding; results depend neither on their size nor on
    the order. ``memory`` keeps common beginnings for later calls, under ``owner``.
    """
    memory = PrefixMemory() if memory is None else memory
    if not attends_fully(module):
        yield from _one_by_one(module, rows, device, max_batch_tokens)
        return
    shared, prefix = shared_prefix(module, [row.prompt for row in rows], device, memory, owner)
    sizes = [len(row.prompt) - shared + len(_tree(row.continuations).tokens) for row in rows]
    for batch in order_by_length(sizes, max_batch_tokens):
        cache = _cache(prefix, shared, len(batch)) if shared or len(rows) == 1 else None
        vectors = _forward(module, [rows[i] for i in batch], device, cache, shared)
        if cache is not None and len(rows) == 1:
            read = len(rows[0].prompt)
            memory.put(owner, rows[0].prompt, [(k.keys[:, :, :read], k.values[:, :, :read]) for k in cache.layers])
        yield [(index, vector.tolist()) for index, vector in zip(batch, vectors, strict=True)]


def _one_by_one(
    module: Any, rows: Sequence[Row], device: torch.device, max_batch_tokens: int
) -> Iterator[list[tuple[int, list[float]]]]:
    """As ``score_batches`` for models that one mask does not fit: a row a continuation, causal attention, nothing shared."""
    single = [(index, Row(row.prompt, [c])) for index, row in enumerate(rows) for c in row.continuations]
    out: list[list[float]] = [[] for _ in rows]
    values = [0.0] * len(single)
    for batch in order_by_length([len(r.prompt) + len(r.continuations[0]) for _, r in single], max_batch_tokens):
        for place, vector in zip(batch, _forward(module, [single[i][1] for i in batch], device, None, 0), strict=True):
            values[place] = float(vector)
    for (index, _), value in zip(single, values, strict=True):
        out[index].append(value)
    yield list(enumerate(out))


def _cache(prefix: KeysValues | None, shared: int, rows: int) -> Any:
    """A transformers cache that begins with the shared tokens: views until a layer appends to them."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for number, (keys, values) in enumerate(expanded(prefix, shared, rows) if prefix and shared else []):
        cache.update(keys, values, number)
    return cache


def _forward(module: Any, rows: Sequence[Row], device: torch.device, cache: Any, shared: int) -> list[torch.Tensor]:
    """One padded forward over packed rows whose first ``shared`` prompt tokens are in ``cache``."""
    trees = [_tree(row.continuations) for row in rows]
    input_ids, positions, mask = _pack(module, rows, trees, device, shared)
    hidden = hidden_states(module, input_ids, position_ids=positions, mask=mask, cache=cache)
    places: dict[int, int] = {}  # flat hidden position -> row of the gathered matrix
    reads: list[tuple[int, int, int]] = []  # (gathered row, token, output)
    offset, width = 0, input_ids.shape[1]
    for number, (row, tree) in enumerate(zip(rows, trees, strict=True)):
        last = number * width + len(row.prompt) - shared - 1
        for continuation, node, token in tree.reads:
            place = places.setdefault(last + 1 + node, len(places))
            reads.append((place, token, offset + continuation))
        offset += tree.count
    total = torch.zeros(offset, device=device)
    if reads:
        where, tokens, outputs = (torch.tensor(column, device=device) for column in zip(*reads, strict=True))
        gathered = hidden.reshape(-1, hidden.shape[-1])[torch.tensor(list(places), device=device)]
        total = total.index_add(0, outputs, _token_log_probs(module, gathered, where, tokens))
    return list(torch.split(total, [tree.count for tree in trees]))


def _token_log_probs(module: Any, hidden: torch.Tensor, where: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """fp32 log-probability of ``tokens[i]`` at ``hidden[where[i]]``; logits in slices when no gradient needs them all."""
    step = hidden.shape[0] if torch.is_grad_enabled() else _LOGIT_ROWS
    out = torch.empty(len(tokens), device=hidden.device)
    for start in range(0, hidden.shape[0], step):
        part = logits(module, hidden[start : start + step]).float()
        normaliser = part.logsumexp(-1)
        inside = ((where >= start) & (where < start + step)).nonzero().squeeze(-1)
        at = where[inside] - start
        values = part[at, tokens[inside]] - normaliser[at]
        out = (
            values
            if step == hidden.shape[0] and start == 0 and len(inside) == len(tokens)
            else out.index_copy(0, inside, values)
        )
    return out


def _pack(
    module: Any, rows: Sequence[Row], trees: Sequence[_Tree], device: torch.device, shared: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Padded ids, position ids and additive mask. Without tree tokens or prefix plain causal attention is right: mask None."""
    lengths = [len(row.prompt) - shared for row in rows]
    width = max(length + len(tree.tokens) for length, tree in zip(lengths, trees, strict=True))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    positions = torch.zeros(len(rows), width, dtype=torch.long)
    for number, (row, tree, length) in enumerate(zip(rows, trees, lengths, strict=True)):
        whole = [*row.prompt[shared:], *tree.tokens]
        ids[number, : len(whole)] = torch.tensor(whole)
        places = [*range(shared, shared + length), *(shared + length + depth for depth in tree.depths)]
        positions[number, : len(whole)] = torch.tensor(places)
    if not shared and all(_is_chain(tree) for tree in trees):
        return ids.to(device), positions.to(device), None
    seen = torch.ones(width, width, dtype=torch.bool).tril().repeat(len(rows), 1, 1)
    for number, (tree, length) in enumerate(zip(trees, lengths, strict=True)):
        size = len(tree.tokens)
        seen[number, length : length + size, length : length + size] = _branches(tree)
    seen = torch.cat([torch.ones(len(rows), width, shared, dtype=torch.bool), seen], dim=2)
    kind = next(module.parameters()).dtype
    mask = torch.zeros(seen.shape, dtype=kind).masked_fill_(~seen, torch.finfo(kind).min)
    return ids.to(device), positions.to(device), mask.unsqueeze(1).to(device)


def _is_chain(tree: _Tree) -> bool:
    return tree.parents == tuple(range(-1, len(tree.parents) - 1))


def _branches(tree: _Tree) -> torch.Tensor:
    """(nodes, nodes) booleans: which tree tokens each tree token sees (itself and those it follows)."""
    size = len(tree.tokens)
    seen = torch.eye(size, dtype=torch.bool)
    for node, parent in enumerate(tree.parents):
        if parent >= 0:
            seen[node] |= seen[parent]
    return seen
