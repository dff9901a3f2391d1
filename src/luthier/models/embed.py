"""One vector a text, with a gradient: what embedders are tuned by, and exactly what the torch engine's ``embed`` answers with.

Encoders pool as their files say; decoders take the mean of the last hidden states over the raw text's tokens, encoder-decoders the same
mean of the encoder's. Vectors are not normalised here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from luthier.data.batch import order_by_length, pad
from luthier.models.decode import hidden_states
from luthier.models.encoder import encode_texts
from luthier.models.load import LoadedModel
from luthier.models.seq2seq import encode

_LONG = 10**9


def text_limit(model: LoadedModel) -> int:
    """The longest text, in tokens, that the engine embeds."""
    return model.context_length - (1 if model.architecture == "decoder" else 0)


def text_ids(model: LoadedModel, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, uncut: an encoder's with its special tokens, a language model's without a template."""
    if model.renderer is None:
        return encode_texts(model.tokenizer, texts, _LONG)
    return model.renderer.prompt_ids_batch(texts)


def shortened(model: LoadedModel, ids: Sequence[int]) -> list[int]:
    """``ids`` cut at the end to the longest text that is embedded; the token that closes a text stays."""
    limit = text_limit(model)
    return list(ids[:limit]) if model.architecture == "decoder" else [*ids[: limit - 1], ids[-1]]


def pooled(model: LoadedModel, rows: Sequence[Sequence[int]]) -> Tensor:
    """Vectors (texts, width), fp32, of one padded forward."""
    renderer = model.renderer
    batch = pad(rows, renderer.pad_id if renderer is not None else model.tokenizer.pad_token_id or 0)
    ids, mask = batch.ids.to(model.device), batch.attention_mask.to(model.device)
    if renderer is None:
        vectors: Tensor = model.module.pooled(ids, mask)
        return vectors
    if model.architecture == "decoder":
        hidden = hidden_states(model.module, ids)  # causal: padding on the right is never seen
    else:
        hidden = encode(model.module, ids, mask)[:, -ids.shape[1] :]
    real = mask[:, :, None].float()
    return (hidden.float() * real).sum(1) / real.sum(1)


def pooled_within(model: LoadedModel, rows: Sequence[Sequence[int]], max_tokens: int) -> Tensor:
    """Vectors (texts, width), fp32, in forwards of at most ``max_tokens`` padded tokens.

    With gradients the activations of one forward at a time are in memory: those of the others are computed again when the gradient comes
    to them, with the same random numbers (Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup",
    https://arxiv.org/abs/2101.06983), so a loss over all the vectors has its exact gradient whatever the budget.
    """
    batches = order_by_length([len(row) for row in rows], max_tokens)
    parts = []
    for number, indices in enumerate(batches, 1):
        part = [rows[i] for i in indices]
        if torch.is_grad_enabled() and number < len(batches):
            parts.append(checkpoint(pooled, model, part, use_reentrant=False))
        else:  # the last one's gradient comes first
            parts.append(pooled(model, part))
    order = [i for indices in batches for i in indices]
    back = torch.empty(len(order), dtype=torch.int64)
    back[torch.tensor(order, dtype=torch.int64)] = torch.arange(len(order))
    return torch.cat(parts).index_select(0, back.to(model.device))
