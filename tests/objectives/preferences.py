"""Preference rows for tests, and the peer's losses on the very same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.core.dataset import Dataset, Example
from luthier.core.message import Message, user
from luthier.models.load import LoadedModel, load_model
from luthier.store.database import open_store

PAIRS = [
    ("Where is my parcel?", "With the courier.", "No idea."),
    ("Refund?", "Yes, today.", "Ask."),
    ("Is the violin insured?", "It is.", "It is not, sorry."),
    ("我的包裹呢?", "明天到。", "?"),
]


def example(number: int, asked: str, chosen: str | None, rejected: str | None, **meta: Any) -> Example:
    good, bad = (() if side is None else (Message("assistant", side),) for side in (chosen, rejected))
    source = f"pairs.jsonl:{number}"
    return Example(str(number), user(asked), chosen=good, rejected=bad, source=source, meta=meta)


def pairs(rows: Sequence[tuple[str, str | None, str | None]] = PAIRS) -> Dataset:
    made = tuple(example(number, *row) for number, row in enumerate(rows, 1))
    return Dataset("pairs", "preference", made)


def loaded(name: str, *, trained: bool = True) -> LoadedModel:
    model = load_model(open_store(), name, dtype="fp32", device="cpu")
    model.module.eval().requires_grad_(trained)
    return model


def moved(model: LoadedModel) -> None:
    """Other weights than the reference's, so that log-ratios are not zero."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))


def log_prob(module: Any, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """log p(answer | prompt) from one plain forward over one row."""
    scores = module(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
    return torch.stack([scores[len(prompt) - 1 + i, token] for i, token in enumerate(answer)]).sum()


def padded(rows: Sequence[tuple[Sequence[int], Sequence[int]]], prefix: str = "") -> dict[str, Tensor]:
    """What the peer's collators make of prompts and answers."""
    width = max(len(p) + len(a) for p, a in rows)
    out = {"input_ids": [], "attention_mask": [], "completion_mask": []}  # type: ignore[var-annotated]
    for prompt, answer in rows:
        fill = [0] * (width - len(prompt) - len(answer))
        out["input_ids"].append([*prompt, *answer, *fill])
        out["attention_mask"].append([1] * (len(prompt) + len(answer)) + fill)
        out["completion_mask"].append([0] * len(prompt) + [1] * len(answer) + fill)
    return {prefix + key: torch.tensor(value) for key, value in out.items()}


def gradients(module: Any) -> dict[str, Tensor]:
    """Copies of all gradients; they are cleared."""
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return found


def close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys() and ours
    for name, one in ours.items():
        torch.testing.assert_close(one, theirs[name], rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


def trainer(kind: str, module: Any, tokenizer: Any, folder: Path, **settings: Any) -> Any:
    """The peer's trainer around ``module``; its dataset is a stand-in, tokens are given to its loss by hand."""
    import datasets
    import trl
    from trl.experimental import orpo

    names = {
        "dpo": (trl.DPOConfig, trl.DPOTrainer, {"prompt": "a", "chosen": "b", "rejected": "c"}),
        "orpo": (orpo.ORPOConfig, orpo.ORPOTrainer, {"prompt": "a", "chosen": "b", "rejected": "c"}),
        "kto": (trl.KTOConfig, trl.KTOTrainer, {"prompt": "a", "completion": "b", "label": True}),
    }
    config, make, row = names[kind]
    plain = {"output_dir": str(folder), "bf16": False, "report_to": [], "use_cpu": True}
    rows = [row, {**row, "prompt": "d", **({"label": False} if kind == "kto" else {})}]
    made = make(
        module,
        args=config(**plain, **settings),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    module.eval()
    module.zero_grad()
    return made
