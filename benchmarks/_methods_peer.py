"""The peer's side of ``methods.py``: ``peft.get_peft_model`` and ``transformers.Trainer``, as their documentation shows them.

The PEFT configuration is the very one that Luthier's method builds for the same model (rank, targets, scale), so that nothing differs
by accident. Methods that only choose which parameters are trained are ``requires_grad`` on a plain model. What PEFT has not is skipped.
"""

from __future__ import annotations

import copy
import gc
import time
from tempfile import TemporaryDirectory
from typing import Any

from _labelled import macro_f1
from _methods_cell import Cell, Place, Skip, base_mb, figures_of, first_tokens, options, sets, settings, tokenised

PLAIN = ("full", "freeze", "bitfit", "linear_probe", "attention_only")
"""Methods that are ``requires_grad`` and no more."""


def peer(cell: Cell, place: Place) -> dict[str, Any]:
    """Train with the Trainer: in fp32 and random batches as it comes, or in bf16 with rows grouped by length."""
    import torch
    from transformers import AutoTokenizer

    from luthier.core import catalog
    from luthier.models.load import load_renderer
    from luthier.store.artifacts import path_of
    from luthier.store.database import open_store
    from luthier.store.models import find
    from luthier.training.memory import peak_mb, reset_peak, resident_mb

    store = open_store(place.home)
    train, test, prompt = sets(place.data / cell.dataset, cell.rows, cell.test)
    labels = list(prompt.labels)
    entry, record = catalog.load("methods", cell.method), find(store, cell.model)
    decoder, folder = record.architecture == "decoder", path_of(store, record.digest)
    own = settings(cell, entry, record.architecture)
    apply = _method(cell, place, store, record, entry, labels)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    renderer = load_renderer(folder, tokenizer) if decoder else None
    gc.collect()
    before_mb = resident_mb()
    model = _load(cell, str(folder), decoder, labels)
    before_mb += base_mb(model)
    model = apply(model)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    reset_peak(torch.device("cpu"))
    began, cpu = time.perf_counter(), time.process_time()
    rows = [_row(ids, told, decoder) for ids, told in tokenised(train, prompt, tokenizer, renderer, labels)]
    counted = _Counting(tokenizer, decoder)
    watch = _train(cell, place, model, rows, counted, own)
    spent = time.perf_counter() - began, time.process_time() - cpu
    peak = peak_mb(torch.device("cpu"))
    if watch.cut:
        tokens = counted.tokens * watch.steps / max(1, counted.batches)
        return figures_of(trainable, tokens, spent, peak, before_mb, None)
    tokens = sum(len(row["input_ids"]) for row in rows) * own["epochs"]
    answers = _answers(model, test, prompt, tokenizer, renderer, labels)
    quality = macro_f1(answers, [str(e.target) for e in test.examples])
    return figures_of(trainable, tokens, spent, peak, before_mb, quality)


def _load(cell: Cell, folder: str, decoder: bool, labels: list[str]) -> Any:
    """The base as transformers loads it; an encoder with a new classifier."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    torch.manual_seed(cell.seed)
    options = {"dtype": torch.bfloat16 if cell.side == "tuned" else torch.float32, **_quantized(cell)}
    if decoder:
        return AutoModelForCausalLM.from_pretrained(folder, **options)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(labels), **options)


def _train(cell: Cell, place: Place, model: Any, rows: list[Any], collator: Any, own: dict[str, Any]) -> Any:
    """Run the Trainer; returns the callback that says whether it was cut short."""
    from transformers import Trainer, TrainingArguments

    watch = _watch(place.limit_s)
    with TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out,
            per_device_train_batch_size=own["batch_size"],
            num_train_epochs=own["epochs"],
            learning_rate=own["learning_rate"],
            weight_decay=own["weight_decay"],
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            max_grad_norm=1.0,
            use_cpu=True,
            seed=cell.seed,
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            save_strategy="no",
            **({"train_sampling_strategy": "group_by_length"} if cell.side == "tuned" else {}),
        )
        callbacks = [watch, *([_allocation(model)] if cell.method == "adalora" else [])]
        trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collator, callbacks=callbacks)
        if cell.method == "adalora":
            _plan_ranks(model, len(rows), own)
        trainer.train()
    return watch


def _quantized(cell: Cell) -> dict[str, Any]:
    """QLoRA's base: NF4 with double quantization, computed in bf16."""
    import torch
    from transformers import BitsAndBytesConfig

    if cell.method != "qlora":
        return {}
    found = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": found}


def _row(ids: list[int], told: Any, decoder: bool) -> dict[str, Any]:
    if not decoder:
        return {"input_ids": ids, "labels": told}
    return {"input_ids": ids, "labels": [token if said else -100 for token, said in zip(ids, told, strict=True)]}


class _Counting:
    """transformers' collators, and how many tokens went through them."""

    def __init__(self, tokenizer: Any, decoder: bool) -> None:
        from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding

        self.inner = (DataCollatorForSeq2Seq if decoder else DataCollatorWithPadding)(tokenizer)
        self.tokens = self.batches = 0

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        self.tokens += sum(len(row["input_ids"]) for row in rows)
        self.batches += 1
        return self.inner([{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows])


def _watch(limit_s: float) -> Any:
    """A callback that ends training when its time is up."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        cut, steps, began = False, 0, time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.steps = state.global_step
            if time.perf_counter() - self.began > limit_s and state.global_step < state.max_steps:
                self.cut = control.should_training_stop = True

    return Watch()


def _allocation(model: Any) -> Any:
    """AdaLoRA's ranks move after every step, as PEFT's documentation says."""
    from transformers import TrainerCallback

    class Allocation(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            model.base_model.update_and_allocate(state.global_step)

    return Allocation()


def _plan_ranks(model: Any, rows: int, own: dict[str, Any]) -> None:
    """AdaLoRA's schedule over the steps of this training: a tenth of warmup, three tenths after the last rank has gone."""
    steps = -(-rows // own["batch_size"]) * int(own["epochs"])
    config = model.peft_config["default"]
    config.total_step, config.tinit, config.tfinal, config.deltaT = steps, int(0.1 * steps), int(0.3 * steps), 1
    model.base_model.rankallocator.set_total_step(steps)


def _method(cell: Cell, place: Place, store: Any, record: Any, entry: Any, labels: list[str]) -> Any:
    """A function that puts the same method into the peer's model. Raises Skip where the peer has none."""
    from peft import TaskType, get_peft_model

    from luthier.models.adapters import inner_of, peft_or_none
    from luthier.models.shapes import load_shapes

    if cell.method == "adapter_fusion":
        raise Skip("PEFT has no adapter_fusion")
    decoder = record.architecture == "decoder"
    chosen = entry.configure(options(cell.method, cell, place))
    task = TaskType.CAUSAL_LM if decoder else TaskType.SEQ_CLS
    sketch = entry(load_shapes(store, record, labels=() if decoder else labels), chosen)
    if cell.method in PLAIN:
        names = {name for name, p in inner_of(sketch).named_parameters() if p.requires_grad}
        return lambda model: _only(model, names)
    if cell.method == "layer_norm":
        config = _norms(sketch)
    else:
        wrapped = peft_or_none(sketch)
        config = copy.deepcopy(wrapped.peft_config["default"]) if wrapped is not None else None
    if config is None or not type(config).__module__.startswith("peft."):
        raise Skip(f"PEFT has no {cell.method}")
    config.task_type = task

    def apply(model: Any) -> Any:
        model.requires_grad_(False)
        return get_peft_model(model, config)

    return apply


def _only(model: Any, names: set[str]) -> Any:
    """Of a plain model, train these parameters of the body, and a classifier."""
    prefix = f"{model.base_model_prefix}."
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names or name.removeprefix(prefix) in names or name.startswith("classifier"))
    return model


def _norms(sketch: Any) -> Any:
    from peft import LNTuningConfig

    from luthier.methods._parts import norms
    from luthier.models.adapters import inner_of

    return LNTuningConfig(target_modules=norms(inner_of(sketch)))


def _answers(model: Any, test: Any, prompt: Any, tokenizer: Any, renderer: Any, labels: list[str]) -> list[str]:
    """The label that the trained model gives to every test row: of a decoder, the one whose first token is likeliest after the prompt."""
    import torch

    from luthier.data.batch import order_by_length, pad

    model.eval()
    if renderer is None:
        ids = [ids for ids, _ in tokenised(test, prompt, tokenizer, None, labels)]
        starts: list[int] = []
    else:
        ids = [renderer.prompt_ids(prompt.messages(e.text)) for e in test.examples]
        starts = first_tokens(renderer, prompt, tuple(labels))
    found = [0] * len(ids)
    with torch.inference_mode():
        for batch in order_by_length([len(row) for row in ids], 2048):
            made = pad([ids[i] for i in batch], tokenizer.pad_token_id or 0)
            logits = model(input_ids=made.ids, attention_mask=made.attention_mask).logits.float()
            if starts:
                ends = made.attention_mask.sum(1) - 1 + logits.shape[1] - made.ids.shape[1]  # after the soft tokens
                logits = logits[torch.arange(len(batch)), ends][:, starts]
            for place, best in zip(batch, logits.argmax(-1).tolist(), strict=True):
                found[place] = best
    return [labels[place] for place in found]
