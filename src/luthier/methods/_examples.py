"""Examples that a method looks at before training begins."""

from __future__ import annotations

from pathlib import Path

from luthier.core.dataset import Example
from luthier.core.message import Conversation, Message
from luthier.data.render_source import Pair, SourceRenderer


def first(data: str, samples: int) -> tuple[Example, ...]:
    """The first examples of ``data``: a hub dataset, or a file whose relative path counts from where the command runs."""
    from luthier.data.read import read

    return read(data if data.startswith("hub:") else Path(data).expanduser(), limit=samples).examples


def answered(example: Example) -> Conversation:
    """The example's turns, with its answer as the last one where it has one apart from them."""
    if example.target is None:
        return example.messages
    return (*example.messages, Message("assistant", example.target))


def pair_of(renderer: SourceRenderer, example: Example, most: int) -> Pair | None:
    """Source and target of the example's last answer; None without an answer, or where one of them has more than ``most`` tokens."""
    messages = answered(example)
    if not any(message.role == "assistant" for message in messages[1:]):
        return None
    pair = renderer.training_pairs_batch([messages])[0][-1]
    return pair if max(len(pair.source), len(pair.target)) <= most else None
