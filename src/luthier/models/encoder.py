"""Text encoders: a body, pooling to one vector a text, and an optional classification head.

Pooling follows Sentence-BERT (Reimers and Gurevych, 2019): the mean of the last hidden states over the real tokens, or the state
of the first token, as the model's own ``1_Pooling/config.json`` says. Pooling and head always run in fp32: they cost nothing, and
what ranks labels should not be rounded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from luthier.core.errors import DataError, InputError, UnsupportedError

Pooling = Literal["mean", "cls"]


class EncoderClassifier(nn.Module):
    """An encoder with pooling, dropout and a linear head over ``labels`` (no head when ``labels`` is 0).

    Tuning puts adapters into ``body`` (a plain Hugging Face module, or the PEFT model around it). A body that has nothing to
    train is kept in eval mode and runs without autograd, so a linear probe costs one plain forward a batch.
    """

    def __init__(self, body: Any, labels: int = 0, *, pooling: Pooling = "mean", dropout: float = 0.1) -> None:
        super().__init__()
        self.body = body
        self.pooling: Pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.head: nn.Linear | None = new_head(self.width, labels) if labels else None
        self.lm_head: nn.Module | None = None  # ``models.masked_head``, while words are predicted

    @property
    def width(self) -> int:
        """Size of a pooled vector."""
        return int(self.body.config.hidden_size)

    @property
    def body_is_frozen(self) -> bool:
        """True when no parameter of the body is trained."""
        return not any(p.requires_grad for p in self.body.parameters())

    def train(self, mode: bool = True) -> EncoderClassifier:
        """As ``nn.Module.train``, but a frozen body stays in eval mode: its features must not be noisy."""
        super().train(mode)
        if mode and self.body_is_frozen:
            self.body.train(False)
        return self

    def pooled(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_types: torch.Tensor | None = None
    ) -> torch.Tensor:
        """One fp32 vector a text, not normalised. Inputs (batch, length); returns (batch, width). ``token_types`` says which of a pair of
        texts a token belongs to."""
        needs_grad = torch.is_grad_enabled() and not self.body_is_frozen
        with torch.set_grad_enabled(needs_grad):
            hidden = self._hidden(input_ids, attention_mask, token_types)
            if self.pooling == "cls":
                return hidden[:, 0].float()
            mask = attention_mask.unsqueeze(-1).to(torch.float32)
            total = (hidden.float() * mask).sum(1)
            return total / mask.sum(1).clamp(min=1.0)

    def states(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The last hidden state of every token, (batch, length, width), fp32."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.body_is_frozen):
            return self._hidden(input_ids, attention_mask, None).float()

    def _hidden(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_types: torch.Tensor | None
    ) -> torch.Tensor:
        types = {} if token_types is None else {"token_type_ids": token_types}
        hidden = self.body(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        return hidden[:, -input_ids.shape[1] :]  # type: ignore[no-any-return]  # a soft prompt's come first, and are no token's

    def classify(self, pooled: torch.Tensor) -> torch.Tensor:
        """Logits (batch, labels), fp32, from pooled vectors (which a linear probe computes only once)."""
        if self.head is None:
            raise UnsupportedError("this encoder has no classification head; tune one: objective classify")
        return self.head(self.dropout(pooled))  # type: ignore[no-any-return]

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits (batch, labels), fp32. Inputs (batch, length), padded on the right, mask 1 on real tokens."""
        return self.classify(self.pooled(input_ids, attention_mask))


def new_head(width: int, labels: int) -> nn.Linear:
    """A head in fp32 that starts near zero: all labels are equally likely before training."""
    head = nn.Linear(width, labels, dtype=torch.float32)
    nn.init.normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head


def encode_texts(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Token ids of each text with the encoder's special tokens, cut at ``max_tokens`` (the closing special tokens are kept).

    Raises InputError for text that is not valid Unicode. Safe from several threads.
    """
    try:
        encodings = tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=True)
    except (UnicodeEncodeError, TypeError) as error:
        raise InputError("text must be valid Unicode; it holds half of a surrogate pair") from error
    out = []
    for encoding in encodings:
        ids = list(encoding.ids)
        if len(ids) > max_tokens:
            closing = 0
            while closing < min(len(ids), max_tokens - 1) and encoding.special_tokens_mask[-1 - closing]:
                closing += 1
            ids = ids[: max_tokens - closing] + ids[len(ids) - closing :]
        out.append(ids)
    return out


def read_pooling(folder: Path) -> Pooling:
    """The pooling that a sentence-transformers folder states; mean when it states none.

    Raises DataError when the file is damaged, UnsupportedError for pooling that is neither mean nor first token.
    """
    path = folder / "1_Pooling" / "config.json"
    if not path.exists():
        return "mean"
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        modes = {
            key.removeprefix("pooling_mode_") for key, on in stated.items() if key.startswith("pooling_mode_") and on
        }
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if isinstance(stated.get("pooling_mode"), str):  # the newer spelling: one key with the mode's name
        modes = {str(stated["pooling_mode"])}
    if modes <= {"mean_tokens", "mean"}:
        return "mean"
    if modes <= {"cls_token", "cls"}:
        return "cls"
    raise UnsupportedError(f"{path}: pooling must be mean or cls; got {', '.join(sorted(modes))}")


def read_max_tokens(folder: Path, config: Any, tokenizer: Any) -> int:
    """The longest text in tokens: the smallest of what positions, tokenizer and ``sentence_bert_config.json`` state."""
    positions = int(getattr(config, "max_position_embeddings", 512))
    if getattr(config, "model_type", "") in {"roberta", "xlm-roberta", "camembert", "mpnet"}:
        positions -= int(getattr(config, "pad_token_id", 1) or 1) + 1  # these count positions from after the padding id
    limits = [positions]
    if 0 < (getattr(tokenizer, "model_max_length", 0) or 0) < 1_000_000:
        limits.append(int(tokenizer.model_max_length))
    path = folder / "sentence_bert_config.json"
    if path.exists():
        try:
            stated = json.loads(path.read_text(encoding="utf-8")).get("max_seq_length")
        except (OSError, ValueError, AttributeError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from error
        if stated:
            limits.append(int(stated))
    return min(limits)
