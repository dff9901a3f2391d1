"""The peers' side of ``train.py``: TRL's ``SFTTrainer`` and ``DPOTrainer``, and the Trainer of transformers, as their documentation shows them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from _train_work import ALPHA, RANK, Kind, Rows, base_folder

Spent = tuple[float, float]
"""Seconds, and seconds of processor time."""


def train(kind: Kind, rows: Rows, folder: Path, *, tuned: bool, start: Path | None) -> tuple[Spent, Any]:
    """Train as the peer comes, or tuned (bf16, no recomputed activations, rows of like lengths together); returns what it took and a
    function that gives the trained module in fp32 for the judge. ``start`` is the encoder with a language-model head to begin from."""
    import torch

    same = {
        "output_dir": str(folder / "trainer"),
        "per_device_train_batch_size": kind.batch,
        "learning_rate": kind.rate,
        "lr_scheduler_type": "linear",
        "num_train_epochs": 1,
        "use_cpu": not torch.cuda.is_available(),
        "seed": 0,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    if tuned:
        same |= {"train_sampling_strategy": "group_by_length"}
    make = {"lora": _sft, "full": _sft, "dpo": _dpo, "masked_lm": _masked}[kind.name]
    trainer = make(kind, rows, same, tuned, start)
    began, cpu = time.perf_counter(), time.process_time()
    trainer.train()
    spent = time.perf_counter() - began, time.process_time() - cpu
    trainer.model.save_pretrained(str(folder / "model"))
    return spent, lambda: _module(kind, folder / "model")


def _module(kind: Kind, folder: Path) -> Any:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    if kind.name == "masked_lm":
        whole = AutoModelForMaskedLM.from_pretrained(str(folder), dtype=torch.float32).eval()
        return lambda ids: whole(ids).logits
    if (folder / "adapter_config.json").exists():
        base = AutoModelForCausalLM.from_pretrained(str(base_folder(kind.model)), dtype=torch.float32)
        return PeftModel.from_pretrained(base, str(folder)).eval()
    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()


def _lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")


def _tuned(tuned: bool) -> dict[str, Any]:
    return {"model_init_kwargs": {"dtype": "bfloat16"}, "gradient_checkpointing": False} if tuned else {}


def _sft(kind: Kind, rows: Rows, same: dict[str, Any], tuned: bool, start: Path | None) -> Any:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    folder = str(base_folder(kind.model))
    told = [{"prompt": [m.as_dict() for m in row[:-1]], "completion": [row[-1].as_dict()]} for row in rows]
    return SFTTrainer(
        folder,
        args=SFTConfig(**same, **_tuned(tuned), max_length=None),
        train_dataset=Dataset.from_list(told),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=_lora() if kind.name == "lora" else None,
    )


def _dpo(kind: Kind, rows: Rows, same: dict[str, Any], tuned: bool, start: Path | None) -> Any:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    folder = str(base_folder(kind.model))
    told = [
        {name: [m.as_dict() for m in turns] for name, turns in zip(("prompt", "chosen", "rejected"), row, strict=True)}
        for row in rows
    ]
    if tuned:  # its rows have no one length to be grouped by
        same = {key: value for key, value in same.items() if key != "train_sampling_strategy"}
    return DPOTrainer(
        folder,
        args=DPOConfig(**same, **_tuned(tuned), max_length=None, beta=0.1),
        train_dataset=Dataset.from_list(told),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=_lora(),
    )


def _masked(kind: Kind, rows: Rows, same: dict[str, Any], tuned: bool, start: Path | None) -> Any:
    import torch
    from transformers import (
        AutoModelForMaskedLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainingArguments,
    )

    model = AutoModelForMaskedLM.from_pretrained(str(start), dtype=torch.bfloat16 if tuned else torch.float32)
    return Trainer(
        model=model,
        args=TrainingArguments(**same),
        train_dataset=[{"input_ids": row} for row in rows],
        data_collator=DataCollatorForLanguageModeling(AutoTokenizer.from_pretrained(str(start)), mlm_probability=0.15),
    )
