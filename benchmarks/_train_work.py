"""What ``train.py`` trains: four kinds of work, their rows, and one judge in fp32 for what comes out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

SUPPORT = Path(__file__).parent.parent / "examples" / "support"
RANK, ALPHA = 8, 16
LENGTH = 128
"""Tokens of a row of masked language modelling."""

Rows = list[Any]


@dataclass(frozen=True)
class Kind:
    """One kind of work. ``rate`` is the learning rate of all sides; ``data`` what is read when no file is given."""

    name: str
    model: str
    rate: float
    batch: int
    data: Path
    what: str
    read: Callable[[Path], Rows]
    judge: Callable[[Any, Rows], dict[str, float]]


# ---- rows


def conversations(path: Path) -> Rows:
    """Conversations that end with an answer."""
    from luthier.core.message import Message
    from luthier.data.read import read

    data = read(path)
    if data.kind == "question":
        return [(*e.messages, Message("assistant", e.target)) for e in data.examples if e.target]
    if data.kind == "chat":
        return [e.messages for e in data.examples if e.messages[-1].role == "assistant"]
    raise SystemExit(f"{path} holds {data.kind} data; chats or questions are needed")


def pairs(path: Path) -> Rows:
    """(prompt, chosen, rejected), each a tuple of messages; of questions the answer to the next one is the rejected answer."""
    from luthier.data.read import read

    data = read(path)
    if data.kind == "preference":
        return [(e.messages, e.chosen, e.rejected) for e in data.examples if e.chosen and e.rejected]
    rows = conversations(path)
    return [(one[:-1], one[-1:], other[-1:]) for one, other in zip(rows, rows[1:] + rows[:1], strict=True)]


def windows(path: Path) -> Rows:
    """Texts cut into rows of ``LENGTH`` tokens with the tokens that stand around a text; what is left over at the end is not used."""
    from luthier.data.read import read
    from luthier.models.load import load_tokenizer

    if path.is_dir():
        texts = [each.read_text(encoding="utf-8") for each in sorted(path.glob("*.md"))]
    else:
        texts = [e.text for e in read(path).examples]
    tokenizer = load_tokenizer(base_folder("minilm-l6"))
    ids = [token for text in texts for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    size = LENGTH - 2
    cut = [
        [tokenizer.cls_token_id, *ids[at : at + size], tokenizer.sep_token_id]
        for at in range(0, len(ids) - size + 1, size)
    ]
    return [row for row in cut if tokenizer(tokenizer.decode(row[1:-1]))["input_ids"] == row]  # Luthier gets texts


def base_folder(name: str) -> Path:
    """A base model in Hugging Face layout, pulled when it is not there."""
    from luthier.models.pull import pull
    from luthier.store.artifacts import path_of
    from luthier.store.database import open_store

    store = open_store()
    return path_of(store, pull(name, store=store).digest)


def token_count(kind: Kind, rows: Rows) -> int:
    """Tokens without padding; of preferences both answers with the prompt in front of each, as the field counts."""
    if kind.name == "masked_lm":
        return sum(map(len, rows))
    renderer = _renderer(kind)
    if kind.name != "dpo":
        return sum(len(row.ids) for row in renderer.training_ids_batch(rows))
    both = [(*prompt, *answer) for prompt, *answers in rows for answer in answers]
    return sum(len(row.ids) for row in renderer.training_ids_batch(both))


# ---- the judge: plain forwards in fp32, one row at a time


def answer_loss(module: Any, rows: Rows) -> dict[str, float]:
    """Mean loss of the answers' tokens."""
    total, count = 0.0, 0
    for row in rows:
        value, tokens = _answer(module, row)
        total, count = total - value, count + tokens
    return {"loss": total / count}


def preference_loss(module: Any, rows: Rows) -> dict[str, float]:
    """The loss of DPO with beta 0.1 against the untrained model, and how often the chosen answer gained more."""
    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(str(base_folder("smollm2-135m")), dtype=torch.float32).eval()
    losses, right = [], 0.0
    for prompt, chosen, rejected in rows:
        gains = [
            _answer(module, (*prompt, *each))[0] - _answer(reference, (*prompt, *each))[0]
            for each in (chosen, rejected)
        ]
        margin = 0.1 * (gains[0] - gains[1])
        losses.append(-float(F.logsigmoid(torch.tensor(margin))))
        right += 0.5 if margin == 0 else float(margin > 0)
    return {"loss": sum(losses) / len(losses), "accuracy": right / len(rows)}


def masked_loss(module: Any, rows: Rows) -> dict[str, float]:
    """Mean loss of a fixed 15% of the tokens, all of them hidden; ``module`` gives logits (rows, length, vocabulary)."""
    import torch
    import torch.nn.functional as F

    from luthier.models.load import load_tokenizer

    hidden = load_tokenizer(base_folder("minilm-l6")).mask_token_id
    generator = torch.Generator().manual_seed(0)
    total, count = 0.0, 0
    with torch.inference_mode():
        for row in rows:
            ids = torch.tensor([row])
            places = 1 + torch.randperm(len(row) - 2, generator=generator)[: round(0.15 * (len(row) - 2))]
            wanted = ids[0, places]
            ids[0, places] = hidden
            logits = module(ids)[0, places].float()
            total += float(F.cross_entropy(logits, wanted, reduction="sum"))
            count += len(places)
    return {"loss": total / count}


def _answer(module: Any, messages: Sequence[Any]) -> tuple[float, int]:
    """log-probability of the last answer and its tokens."""
    import torch

    rendered = _renderer(KINDS["lora"]).training_ids(tuple(messages))
    with torch.inference_mode():
        device = next(module.parameters()).device
        logits = module(input_ids=torch.tensor([rendered.ids], device=device)).logits[0].float()
    places = [i for i, said in enumerate(rendered.mask) if said and i]
    log_probs = logits.log_softmax(-1)
    return sum(float(log_probs[i - 1, rendered.ids[i]]) for i in places), len(places)


def _renderer(kind: Kind) -> Any:
    from luthier.models.load import load_renderer

    if kind.model not in _RENDERERS:
        _RENDERERS[kind.model] = load_renderer(base_folder(kind.model))
    return _RENDERERS[kind.model]


_RENDERERS: dict[str, Any] = {}

KINDS = {
    kind.name: kind
    for kind in (
        Kind("lora", "smollm2-135m", 5e-4, 8, SUPPORT / "questions.jsonl", f"LoRA r={RANK} on every linear layer, loss on the answers", conversations, answer_loss),
        Kind("full", "smollm2-135m", 2e-5, 8, SUPPORT / "questions.jsonl", "all weights, loss on the answers", conversations, answer_loss),
        Kind("dpo", "smollm2-135m", 5e-5, 8, SUPPORT / "questions.jsonl", f"DPO, beta 0.1, LoRA r={RANK} on every linear layer", pairs, preference_loss),
        Kind("masked_lm", "minilm-l6", 2e-4, 16, SUPPORT / "handbook", f"15% of the tokens hidden, rows of {LENGTH} tokens, all weights", windows, masked_loss),
    )
}  # fmt: skip
