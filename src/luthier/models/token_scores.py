"""Log-probability of every single token, where ``models.score`` sums them: for checks that ask where models differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from luthier.data.batch import order_by_length, pad
from luthier.models.decode import hidden_states, logits

_LOGIT_ROWS = 256


class TokenScores(NamedTuple):
    """Of each scored token: its log-probability in nats, float64, and the id that was likeliest in its place, int64."""

    log_probs: npt.NDArray[np.float64]
    likeliest: npt.NDArray[np.int64]


@torch.inference_mode()
def token_scores(
    module: Any,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    device: torch.device,
    *,
    max_batch_tokens: int = 1024,
    told: Callable[[int], None] = lambda done: None,
) -> list[TokenScores]:
    """Scores of the second ids of each row after the first, of which there is at least one; log-softmax in fp32.

    Rows are padded on the right, which causal attention never sees. ``told`` hears how many rows are done.
    """
    out: list[TokenScores] = [TokenScores(np.zeros(0), np.zeros(0, dtype=np.int64))] * len(rows)
    done = 0
    for batch in order_by_length([len(before) + len(ids) for before, ids in rows], max_batch_tokens):
        whole = [[*rows[i][0], *rows[i][1]] for i in batch]
        hidden = hidden_states(module, pad(whole, 0).ids.to(device))
        for place, index in enumerate(batch):
            before, ids = rows[index]
            reads = hidden[place, len(before) - 1 : len(before) + len(ids) - 1]
            out[index] = _scores(module, reads, torch.tensor(list(ids), device=device, dtype=torch.long))
        done += len(batch)
        told(done)
    return out


def _scores(module: Any, hidden: torch.Tensor, ids: torch.Tensor) -> TokenScores:
    log_probs, likeliest = [np.zeros(0)], [np.zeros(0, dtype=np.int64)]
    for start in range(0, len(ids), _LOGIT_ROWS):
        part = logits(module, hidden[start : start + _LOGIT_ROWS]).float()
        wanted = part.gather(1, ids[start : start + _LOGIT_ROWS, None]).squeeze(1)
        log_probs.append((wanted - part.logsumexp(-1)).double().cpu().numpy())
        likeliest.append(part.argmax(-1).cpu().numpy())
    return TokenScores(np.concatenate(log_probs), np.concatenate(likeliest))
