"""Scoring in padded rows with a mask: the way that has gradients, and that fits every model.

All continuations of a prompt go through the model in one row: the prompt, then the continuations as a tree in which common
beginnings are one branch (a token tree as in SpecInfer, Miao et al. 2023, section 4). Position ids restart after the prompt on each
branch, and the attention mask lets a token see the prompt and its own branch only, so that the numbers are those of separate
forwards. Logits are computed only where a continuation reads them, log-softmax in fp32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from luthier.data.batch import order_by_length
from luthier.models.decode import attends_fully, hidden_states, logits
from luthier.models.log_probs import token_log_probs
from luthier.models.prefix import KeysValues, PrefixMemory, expanded, shared_prefix
from luthier.models.soft_prompt import new_cache, virtual_tokens


class Row(NamedTuple):
    """One prompt and what may follow it, as token ids. The prompt has at least one token."""

    prompt: Sequence[int]
    continuations: Sequence[Sequence[int]]


class Read(NamedTuple):
    """``logprob`` of a continuation, a sum over its tokens in nats; ``greedy``: each of them was the likeliest one."""

    logprob: float
    greedy: bool


@dataclass(frozen=True)
class _Branches:
    """What follows the prompt of a packed row: tree tokens after the prompt, and where each continuation's tokens are predicted.

    ``parents[i]`` is the tree index of the token before ``tokens[i]`` (-1: the prompt's last). ``reads`` lists, over all
    continuations in turn, (continuation, tree index that predicts or -1, token predicted).
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    reads: tuple[tuple[int, int, int], ...]
    count: int


def _join(continuations: Iterable[Sequence[int]]) -> _Branches:
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
    return _Branches(tokens, parents, tuple(depths), tuple(reads), count)


def score_masked(
    module: Any,
    rows: Sequence[Row],
    device: torch.device,
    max_batch_tokens: int,
    memory: PrefixMemory,
    owner: str | None,
) -> Iterator[list[tuple[int, list[Read]]]]:
    """Without gradients, a batch at a time: (row index, its continuations' scores). What all prompts begin with is computed once."""
    if not attends_fully(module):
        yield from _score_one_by_one(module, rows, device, max_batch_tokens)
        return
    shared, prefix = shared_prefix(module, [row.prompt for row in rows], device, memory, owner)
    sizes = [len(row.prompt) - shared + len(_join(row.continuations).tokens) for row in rows]
    for batch in order_by_length(sizes, max_batch_tokens):
        cache = prefix_cache(module, prefix, shared, len(batch)) if shared or len(rows) == 1 else None
        read = _read(module, [rows[i] for i in batch], device, cache, shared)
        if cache is not None and len(rows) == 1:
            length = virtual_tokens(module) + len(rows[0].prompt)
            held = [(layer.keys[:, :, :length], layer.values[:, :, :length]) for layer in cache.layers]
            memory.put(owner, rows[0].prompt, held)
        yield list(zip(batch, read, strict=True))


def _score_one_by_one(
    module: Any, rows: Sequence[Row], device: torch.device, max_batch_tokens: int
) -> Iterator[list[tuple[int, list[Read]]]]:
    """For models that one mask does not fit: a row a continuation, causal attention, nothing shared."""
    single = [(index, Row(row.prompt, [c])) for index, row in enumerate(rows) for c in row.continuations]
    out: list[list[Read]] = [[] for _ in rows]
    read: list[Read] = [Read(0.0, True)] * len(single)
    for batch in order_by_length([len(r.prompt) + len(r.continuations[0]) for _, r in single], max_batch_tokens):
        for place, (one,) in zip(batch, _read(module, [single[i][1] for i in batch], device, None, 0), strict=True):
            read[place] = one
    for (index, _), one in zip(single, read, strict=True):
        out[index].append(one)
    yield list(enumerate(out))


def prefix_cache(module: Any, prefix: KeysValues | None, shared: int, rows: int) -> Any:
    """A transformers cache that begins with the shared tokens (and the soft prompt before them): views until a layer appends to them."""
    from transformers import DynamicCache

    if not prefix or not shared:
        return new_cache(module, rows)
    cache = DynamicCache()
    for number, (keys, values) in enumerate(expanded(prefix, virtual_tokens(module) + shared, rows)):
        cache.update(keys, values, number)
    return cache


def log_probs(module: Any, rows: Sequence[Row], device: torch.device, cache: Any, shared: int) -> list[torch.Tensor]:
    """One padded forward over packed rows whose first ``shared`` prompt tokens are in ``cache``: with gradients when they are
    enabled, the summed log-probability of each continuation, one fp32 vector a row."""
    hidden, where, tokens, outputs, counts = hidden_at_reads(module, rows, device, cache, shared)
    total = torch.zeros(sum(counts), device=device)
    if len(tokens):
        total = total.index_add(0, outputs, _token_log_probs(module, hidden, where, tokens))
    return list(torch.split(total, counts))


@torch.inference_mode()
def _read(module: Any, rows: Sequence[Row], device: torch.device, cache: Any, shared: int) -> list[list[Read]]:
    """As ``log_probs``, with whether each continuation is the greedy one."""
    hidden, where, tokens, outputs, counts = hidden_at_reads(module, rows, device, cache, shared)
    total, missed = torch.zeros(sum(counts), device=device), torch.zeros(sum(counts), device=device)
    if len(tokens):
        values, best = token_log_probs(module, hidden, where, tokens)
        total.index_add_(0, outputs, values)
        missed.index_add_(0, outputs, (~best).float())
    read = [Read(value, not misses) for value, misses in zip(total.tolist(), missed.tolist(), strict=True)]
    return [[read.pop(0) for _ in range(count)] for count in counts]


def hidden_at_reads(
    module: Any, rows: Sequence[Row], device: torch.device, cache: Any, shared: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, list[int]]:
    """Hidden states where something is read, (places, width); for each token read the place, the token and the number of its
    continuation among all; and how many continuations each row has."""
    return _hidden_at(module, rows, device, cache, shared, None)


def log_probs_with_texts(
    module: Any, rows: Sequence[Row], spans: Sequence[tuple[int, int]], device: torch.device, cache: Any, shared: int
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """As ``log_probs``; and of each row the summed log-probability of its own prompt's tokens from the first to before the second of its
    span, (rows,), from the same forward. A span begins after token ``shared``: what predicts its first token must be in the rows."""
    hidden, where, tokens, outputs, counts = _hidden_at(module, rows, device, cache, shared, spans)
    total = torch.zeros(sum(counts), device=device)
    total = total.index_add(0, outputs, _token_log_probs(module, hidden, where, tokens))
    each = torch.split(total, counts)
    return [one[1:] for one in each], torch.stack([one[0] for one in each])


def _hidden_at(
    module: Any,
    rows: Sequence[Row],
    device: torch.device,
    cache: Any,
    shared: int,
    spans: Sequence[tuple[int, int]] | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, list[int]]:
    """``hidden_at_reads``; with ``spans`` every row's first output is that stretch of its prompt, before its continuations."""
    trees = [_join(row.continuations) for row in rows]
    input_ids, positions, mask = _pack(module, rows, trees, device, shared)
    hidden = hidden_states(module, input_ids, position_ids=positions, mask=mask, cache=cache)
    reads: list[tuple[int, int, int]] = []  # (flat hidden position, token, output)
    offset, width = 0, input_ids.shape[1]
    for number, (row, tree) in enumerate(zip(rows, trees, strict=True)):
        begin = number * width - shared
        last = begin + len(row.prompt) - 1
        if spans is not None:
            reads += [(begin + at - 1, row.prompt[at], offset) for at in range(*spans[number])]
            offset += 1
        reads += sorted((last + 1 + node, token, offset + continuation) for continuation, node, token in tree.reads)
        offset += tree.count
    flat, tokens, outputs = torch.tensor(reads, dtype=torch.long, device=device).reshape(-1, 3).unbind(1)
    places, where = flat.unique_consecutive(return_inverse=True)  # type: ignore[no-untyped-call]
    gathered = hidden.reshape(-1, hidden.shape[-1])[places]
    return gathered, where, tokens, outputs, [tree.count + (spans is not None) for tree in trees]


def hidden_at_ends(
    module: Any, rows: Sequence[Row], device: torch.device, cache: Any, shared: int
) -> tuple[torch.Tensor, list[int]]:
    """Hidden states of each continuation's last token, (continuations, width), and how many continuations each row has."""
    after = 0  # any token: what it is does not matter where it is predicted
    longer = [Row(row.prompt, [[*continuation, after] for continuation in row.continuations]) for row in rows]
    trees = [_join(row.continuations) for row in longer]
    input_ids, positions, mask = _pack(module, longer, trees, device, shared)
    hidden = hidden_states(module, input_ids, position_ids=positions, mask=mask, cache=cache)
    width = input_ids.shape[1]
    places = []
    for number, (row, tree) in enumerate(zip(longer, trees, strict=True)):
        last = number * width + len(row.prompt) - shared - 1
        ends = {continuation: last + 1 + node for continuation, node, _ in tree.reads}  # of each the last that is read
        places += [ends[continuation] for continuation in range(tree.count)]
    flat = hidden.reshape(-1, hidden.shape[-1])
    return flat.index_select(0, torch.tensor(places, device=device)), [tree.count for tree in trees]


def _token_log_probs(module: Any, hidden: torch.Tensor, where: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """fp32 log-probability of ``tokens[i]`` at ``hidden[where[i]]``, with gradients when they are enabled."""
    if not torch.is_grad_enabled():
        return token_log_probs(module, hidden, where, tokens)[0]
    part = logits(module, hidden).float()
    return part[where, tokens] - part.logsumexp(-1)[where]


def _pack(
    module: Any, rows: Sequence[Row], trees: Sequence[_Branches], device: torch.device, shared: int
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
        seen[number, length : length + size, length : length + size] = _seen(tree)
    seen = torch.cat([torch.ones(len(rows), width, shared, dtype=torch.bool), seen], dim=2)
    kind = next(module.parameters()).dtype
    mask = torch.zeros(seen.shape, dtype=kind).masked_fill_(~seen, torch.finfo(kind).min)
    return ids.to(device), positions.to(device), mask.unsqueeze(1).to(device)


def _is_chain(tree: _Branches) -> bool:
    return tree.parents == tuple(range(-1, len(tree.parents) - 1))


def _seen(tree: _Branches) -> torch.Tensor:
    """(nodes, nodes) booleans: which tree tokens each tree token sees (itself and those it follows)."""
    size = len(tree.tokens)
    seen = torch.eye(size, dtype=torch.bool)
    for node, parent in enumerate(tree.parents):
        if parent >= 0:
            seen[node] |= seen[parent]
    return seen
