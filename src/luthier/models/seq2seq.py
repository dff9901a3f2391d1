"""The parts of an encoder-decoder that training, scoring and generation call one by one: the encoder once a prompt, the decoder after it,
logits only where somebody reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from luthier.data.batch import order_by_length, pad
from luthier.models.decode import causal_model, logits
from luthier.models.log_probs import token_log_probs
from luthier.models.packed import Read, Row
from luthier.models.sample import RowSampler, Sampler
from luthier.models.soft_prompt import seen, source


def encode(module: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Last hidden states of the encoder (rows, length, width); ``mask`` (rows, length) is 1 on real tokens.

    The virtual tokens of a soft prompt come before them: then there are as many more.
    """
    out: Tensor = causal_model(module).get_encoder()(**source(module, ids, mask)).last_hidden_state
    return out


def decode(module: Any, ids: Tensor, encoded: Tensor, mask: Tensor, cache: Any = None) -> Tensor:
    """What the head makes logits of (rows, length, width), for decoder tokens ``ids`` (rows, length) that follow those in ``cache``.

    ``encoded`` and ``mask`` are the sources', the mask that of their real tokens. Padding of ``ids`` on the right is seen by no real token.
    """
    model = causal_model(module)
    mask = seen(mask, encoded.shape[1] - mask.shape[1])
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


def answer_logits(
    module: Any, source: Sequence[int], target: Sequence[int], opening: Sequence[int], device: torch.device
) -> Tensor:
    """Logits (tokens, vocabulary) of each token of ``target``, given those before it. Differentiable."""
    ids = torch.tensor([list(source)], device=device)
    mask, shown = torch.ones_like(ids), torch.tensor([[*opening, *target[:-1]]], device=device)
    return logits(module, decode(module, shown, encode(module, ids, mask), mask)[0, len(opening) - 1 :])


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


class Replies:
    """Rows of one batch while they are answered, token by token. The encoder runs once, in the first step.

    ``prompts`` are sources' token ids; the encoder reads at most ``read_tokens`` of them at once. All rows begin with ``opening``.
    ``samplers``: how each row is drawn.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        samplers: Sequence[RowSampler],
        opening: Sequence[int],
        pad_id: int,
        device: torch.device,
        *,
        read_tokens: int = 1024,
    ) -> None:
        self.rows = list(range(len(prompts)))
        self._prompts, self._pad_id, self._read_tokens = prompts, pad_id, read_tokens
        self._count, self._device = len(prompts), device
        self._sampler = Sampler(samplers)
        self.top: Mapping[int, list[tuple[int, float]]] = {}
        self._last = torch.tensor([list(opening)] * len(prompts), device=device)
        self._finished: set[int] = set()
        self._cache: Any = None
        self._encoded = self._mask = torch.empty(0)

    @torch.inference_mode()
    def step(self, module: Any) -> tuple[list[int], list[int], list[float]]:
        """The next token of every live row: (row numbers, tokens, log-probabilities)."""
        if self._cache is None:
            self._cache = new_cache()
            self._encode(module)
        else:
            self._drop_finished()
        hidden = decode(module, self._last, self._encoded, self._mask, self._cache)[:, -1]
        drawn = self._sampler.draw(logits(module, hidden))
        self.top = {self.rows[place]: found for place, found in drawn.top.items()}
        self._last = drawn.tokens[:, None]
        live = self._live()
        return [self.rows[place] for place in live], drawn.tokens[live].tolist(), drawn.log_probs[live].tolist()

    def finish(self, rows: Iterable[int]) -> None:
        """These rows need no more tokens. Their place in the batch is given up when enough of them are done."""
        self._finished.update(rows)

    @property
    def done(self) -> bool:
        """True when every row is finished."""
        return len(self._finished) == self._count

    def _live(self) -> list[int]:
        return [place for place, row in enumerate(self.rows) if row not in self._finished]

    def _encode(self, module: Any) -> None:
        """Rows in groups of like lengths; the encoder's states of all of them side by side."""
        lengths = [len(prompt) for prompt in self._prompts]
        self._mask = torch.zeros(self._count, max(lengths), dtype=torch.long, device=self._device)
        states: list[tuple[list[int], Tensor]] = []
        for group in order_by_length(lengths, self._read_tokens):
            ids, mask = sources([self._prompts[row] for row in group], self._pad_id, self._device)
            self._mask[group, : mask.shape[1]] = mask
            states.append((group, encode(module, ids, mask)))
        widest = max(encoded.shape[1] for _, encoded in states)
        self._encoded = states[0][1].new_zeros(self._count, widest, states[0][1].shape[-1])
        for group, encoded in states:
            self._encoded[group, : encoded.shape[1]] = encoded

    def _drop_finished(self) -> None:
        live = self._live()
        if len(live) > 0.75 * len(self.rows):  # copying the cache for every single row would cost more than it saves
            return
        places = torch.tensor(live, device=self._device)
        self.rows = [self.rows[place] for place in live]
        self._cache.batch_select_indices(places)
        self._sampler.keep(live)
        self._last, self._mask, self._encoded = self._last[places], self._mask[places], self._encoded[places]


@torch.inference_mode()
def mean_encoded(module: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Unit-length means of the encoder's last hidden states over real tokens, (rows, width), fp32."""
    hidden, real = encode(module, ids, mask)[:, -ids.shape[1] :].float(), mask[:, :, None].float()
    return torch.nn.functional.normalize((hidden * real).sum(1) / real.sum(1), dim=-1)
