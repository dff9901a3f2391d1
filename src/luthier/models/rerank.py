"""Cross-encoders: how relevant a document is to a query, read together in one forward.

Nogueira and Cho 2019, "Passage re-ranking with BERT", https://arxiv.org/abs/1901.04085: the encoder reads [query; document] as a pair of
texts, and a linear layer of one output on the pooled vector gives the score. Objective ``rank`` tunes one; ``load_reranker`` and
``scores`` answer with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.core.errors import InputError, UnsupportedError
from luthier.core.run import Progress, no_progress
from luthier.data.batch import order_by_length, pad
from luthier.models.heads import answers_of
from luthier.models.load import LoadedModel, load_model
from luthier.store.database import Store


@dataclass(slots=True)
class PairIds:
    """Token ids of query and document with the encoder's special tokens, and which of the two each belongs to (token types).
    ``document`` counts the document's tokens."""

    ids: list[int]
    types: list[int]
    document: int


def pair_ids(model: LoadedModel, pairs: Sequence[tuple[str, str]], max_tokens: int | None = None) -> list[PairIds]:
    """(query, document) texts tokenised as pairs. Over ``max_tokens`` the document is cut at its end, never the query (``document`` is 0
    where that leaves nothing). Raises InputError for text that is not valid Unicode."""
    try:
        encodings = model.tokenizer.backend_tokenizer.encode_batch(list(pairs), add_special_tokens=True)
    except (UnicodeEncodeError, TypeError) as error:
        raise InputError("text must be valid Unicode; it holds half of a surrogate pair") from error
    kinds = int(getattr(model.module.body.config, "type_vocab_size", 0) or 0)
    out = []
    for encoding in encodings:
        keep = list(range(len(encoding.ids)))
        own = [at for at, sequence in enumerate(encoding.sequence_ids) if sequence == 1]
        if max_tokens is not None and len(keep) > max_tokens:
            cut = set(own[max(0, len(own) - (len(keep) - max_tokens)) :])
            keep = [at for at in keep if at not in cut]
            own = [at for at in own if at not in cut]
        types = [encoding.type_ids[at] if encoding.type_ids[at] < kinds else 0 for at in keep]
        out.append(PairIds([encoding.ids[at] for at in keep], types, len(own)))
    return out


def pair_features(model: LoadedModel, pairs: Sequence[PairIds], max_tokens: int) -> Tensor:
    """Pooled vectors (pairs, width), fp32, in forwards of at most ``max_tokens`` padded tokens; with gradients when they are enabled."""
    module, fill = model.module, model.tokenizer.pad_token_id or 0
    reads_types = bool(getattr(module.body.config, "type_vocab_size", 0))
    parts, order = [], []
    for indices in order_by_length([len(pair.ids) for pair in pairs], max_tokens):
        batch = pad([pairs[i].ids for i in indices], fill)
        types = pad([pairs[i].types for i in indices], 0).ids.to(model.device) if reads_types else None
        parts.append(module.pooled(batch.ids.to(model.device), batch.attention_mask.to(model.device), types))
        order += indices
    back = torch.empty(len(order), dtype=torch.int64)
    back[torch.tensor(order, dtype=torch.int64)] = torch.arange(len(order))
    return torch.cat(parts).index_select(0, back.to(model.device))


def is_reranker(model: LoadedModel) -> bool:
    """Whether ``model`` is an encoder with a head of one output that stands for no label."""
    return (
        model.architecture == "encoder"
        and not model.labels
        and model.module.head is not None
        and model.module.head.out_features == 1
        and not answers_of(model.module.head)
    )


def load_reranker(store: Store, name: str, *, dtype: str = "auto", device: str = "auto") -> LoadedModel:
    """A reranker that objective ``rank`` made. Raises UnsupportedError for another model, and what ``load_model`` raises."""
    model = load_model(store, name, dtype=dtype, device=device)
    if not is_reranker(model) or model.record.meta.get("objective") != "rank":
        raise UnsupportedError(
            f"{name} is no reranker: it has no head that scores a query with a document",
            hint="tune one: objective: rank",
        )
    return model


@torch.inference_mode()
def scores(
    model: LoadedModel,
    query: str,
    documents: Sequence[str],
    *,
    max_batch_tokens: int = 4096,
    progress: Progress = no_progress,
) -> list[float]:
    """How relevant each document is to ``query``, higher is better: logits, whose order is what was trained (and whose sigmoid is a probability
    after a pointwise loss). Documents over the context length are cut at their ends.

    Raises InputError for an empty query, or one that leaves no room for a document.
    """
    if not query.strip():
        raise InputError("query must not be empty")
    if not documents:
        return []
    pairs = pair_ids(model, [(query, document) for document in documents], model.context_length)
    for pair, document in zip(pairs, documents, strict=True):
        if len(pair.ids) > model.context_length or (document.strip() and not pair.document):
            raise InputError(
                f"the query leaves no room for a document: {model.record.name} reads {model.context_length} tokens in all"
            )
    out = [0.0] * len(pairs)
    done = 0
    for indices in order_by_length([len(pair.ids) for pair in pairs], max_batch_tokens):
        vectors = pair_features(model, [pairs[i] for i in indices], max_batch_tokens)
        for i, score in zip(indices, model.module.classify(vectors)[:, 0].tolist(), strict=True):
            out[i] = score
        done += len(indices)
        progress("rerank", done, len(pairs))
    return out
