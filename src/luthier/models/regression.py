"""Decoders with a head on the end of a prompt: what it says of each prompt.

Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", section 3.2: a linear layer reads the last layer's state at
the last token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.data.batch import order_by_length
from luthier.models.load import LoadedModel
from luthier.models.score import Row, packed_ends


def prompt_outputs(model: LoadedModel, prompts: Sequence[Sequence[int]]) -> Tensor:
    """The head's outputs (prompts, outputs) at the last token of each prompt, fp32, differentiable. What all begin with is read once."""
    ends = packed_ends(model.module, [Row(list(ids[:-1]), [list(ids[-1:])]) for ids in prompts], model.device)
    outputs: Tensor = model.head(ends.float())
    return outputs


@torch.inference_mode()
def prompt_numbers(model: LoadedModel, prompts: Sequence[Sequence[int]], max_batch_tokens: int) -> list[float]:
    """The number of each prompt in the unit of the data, in forwards of at most ``max_batch_tokens`` padded tokens."""
    out = [0.0] * len(prompts)
    for batch in order_by_length([len(ids) for ids in prompts], max_batch_tokens):
        numbers = model.head.numbers(prompt_outputs(model, [prompts[i] for i in batch]))
        for i, number in zip(batch, numbers.tolist(), strict=True):
            out[i] = number
    return out
