"""Random choices that objectives make anew each time a row is seen.

In training they come from torch's global generator, which the seed sets and a checkpoint holds: other masks in every epoch, and the same ones
after a resume. In validation they follow from the row alone, so that each validation asks the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch

from luthier.models.load import LoadedModel


def generators(rows: Sequence[Sequence[int]], model: LoadedModel) -> list[torch.Generator]:
    """One generator for each row of ids."""
    if model.module.training:
        seeds = torch.randint(2**31 - 1, (len(rows),)).tolist()
    else:
        seeds = [zlib.crc32(",".join(map(str, ids)).encode()) for ids in rows]
    return [torch.Generator().manual_seed(seed) for seed in seeds]
