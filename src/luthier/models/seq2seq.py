"""The parts of an encoder-decoder that training, scoring and generation call one by one: the encoder once a prompt, the decoder after it,
logits only where somebody reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from luthier.data.batch import order_by_length, pad
from luthier.models.decode import causal_model, logits
from luthier.models.log_probs import token_log_probs
from luthier.models.packed import Read, Row


def encode(module: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Last hidden states of the encoder (rows, length, width); ``mask`` (rows, length) is 1 on real tokens."""
    out: Tensor = causal_model(module).get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    return out


def decode(module: Any, ids: Tensor, encoded: Tensor, mask: Tensor, cache: Any = None) -> Tensor:
    """What the head makes logits of (rows, length, width), for decoder tokens ``ids`` (rows, length) that follow those in ``cache``.

    ``encoded`` and ``mask`` are the sources'. Padding of ``ids`` on the right is seen by no real token.
    """
    model = causal_model(module)
    out = model.get_decoder()(
        input_ids=ids,
        encoder_hidden_states=encoded,
        encoder_attention_mask=mask,
        past_key_values=cache,
        use_cache=cache is not None,
    )
    hidden: Tensor = out.last_hidden_state
    if _scales(model.config):  # T5 with one matrix for embeddings and head
        hidden = hidden * model.config.d_model**-0.5
    return hidden


def _scales(config: Any) -> bool:
    stated = getattr(config, "scale_decoder_outputs", None)
    if stated is not None:
        return bool(stated)
    return config.model_type == "umt5" and bool(config.tie_word_embeddings)


def new_cache() -> Any:
    """An empty cache of the decoder: of what it has said, and of what it attends to in the source."""
    return EncoderDecoderCache(DynamicCache(), DynamicCache())


def sources(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """ids and mask of the encoder's rows, padded on the right."""
    batch = pad(rows, pad_id)
    return batch.ids.to(device), batch.attention_mask.to(device)


@dataclass(frozen=True)
class Placed:
    """Hidden states (places, width), and which token of which continuation is read where: ``where`` ascends.

    ``owner`` numbers the continuations through all rows.
    """

    hidden: Tensor
    where: Tensor
    tokens: Tensor
    owner: Tensor
    count: int


def read(module: Any, rows: Sequence[Row], opening: Sequence[int], pad_id: int, device: torch.device) -> Placed:
    """Two passes of the decoder for all continuations of all rows: the opening, once a prompt, then what follows in each.

    What the decoder attends to in a source is computed once, and shared by the prompt's continuations. Differentiable.
    """
    ids, mask = sources([row.prompt for row in rows], pad_id, device)
    encoded, cache = encode(module, ids, mask), new_cache()
    start = torch.tensor([list(opening)] * len(rows), device=device)
    hidden = decode(module, start, encoded, mask, cache)[:, -1]
    every = [(number, c) for number, row in enumerate(rows) for c in row.continuations]
    reads = [(number, c[0], k) for k, (number, c) in enumerate(every)]
    longer = [(k, number, c) for k, (number, c) in enumerate(every) if len(c) > 1]
    if longer:
        of = torch.tensor([number for _, number, _ in longer], device=device)
        cache.batch_select_indices(of)
        tails = pad([c[:-1] for _, _, c in longer], pad_id).ids.to(device)
        more = decode(module, tails, encoded[of], mask[of], cache)
        width = tails.shape[1]
        wanted = [line * width + at for line, (_, _, c) in enumerate(longer) for at in range(len(c) - 1)]
        places = torch.tensor(wanted, device=device)
        reads += [(0, token, k) for k, _, c in longer for token in c[1:]]
        hidden = torch.cat([hidden, more.reshape(-1, more.shape[-1])[places]])
    where = [place for place, _, _ in reads[: len(every)]] + list(range(len(rows), len(rows) + len(reads) - len(every)))
    return Placed(
        hidden,
        torch.tensor(where, device=device),
        torch.tensor([token for _, token, _ in reads], device=device),
        torch.tensor([k for _, _, k in reads], device=device),
        len(every),
    )


def pair_log_probs(
    module: Any, rows: Sequence[Row], opening: Sequence[int], pad_id: int, device: torch.device
) -> list[Tensor]:
    """Summed log-probability of each continuation, differentiable: one fp32 vector (continuations,) a row."""
    placed = read(module, rows, opening, pad_id, device)
    every = logits(module, placed.hidden).float()
    said = every[placed.where, placed.tokens] - every.logsumexp(-1)[placed.where]
    sums = torch.zeros(placed.count, device=device).index_add(0, placed.owner, said)
    return list(torch.split(sums, [len(row.continuations) for row in rows]))


def score_pairs(
    module: Any,
    rows: Sequence[Row],
    opening: Sequence[int],
    pad_id: int,
    device: torch.device,
    *,
    max_batch_tokens: int = 1024,
) -> Iterator[list[tuple[int, list[Read]]]]:
    """One batch at a time: (row index, its continuations' scores). A batch reads at most so many tokens, or a single row."""
    lengths = [len(row.prompt) + sum(map(len, row.continuations)) for row in rows]
    for indices in order_by_length(lengths, max_batch_tokens):
        with torch.inference_mode():
            placed = read(module, [rows[i] for i in indices], opening, pad_id, device)
            values, best = token_log_probs(module, placed.hidden, placed.where, placed.tokens)
            sums = torch.zeros(placed.count, device=device).index_add(0, placed.owner, values).tolist()
            missed = torch.zeros(placed.count, device=device).index_add(0, placed.owner, (~best).float()).tolist()
        found = iter([Read(total, not wrong) for total, wrong in zip(sums, missed, strict=True)])
        yield [(i, [next(found) for _ in rows[i].continuations]) for i in indices]
