"""Pre-training from random weights: Luthier beside a plain loop in nanoGPT's way, from the same model, on the same number of tokens.

    python benchmarks/pretrain.py [causal_lm] [masked_lm] [--quick] [--data texts.jsonl] [--held held.jsonl] [--size 5m] [--tokens 1000000]

    causal_lm    a Llama or GPT-2 (--architecture); the peer is nanoGPT's loop (github.com/karpathy/nanoGPT, train.py): the documents with an end
                 token each as one stream, blocks of random place in it, AdamW with betas 0.9 and 0.95, cosine to a tenth; in fp32 as nanoGPT
                 computes on a CPU, and in bf16 autocast as it does on a GPU
    masked_lm    a BERT; the peer is the Trainer of transformers with DataCollatorForLanguageModeling on the stream cut into blocks (run_mlm.py)

Both sides start from the same random weights and tokenizer, with the same learning rate, warmup, weight decay, clipping and rows a step. One evaluator
in fp32 judges both on held-out documents: perplexity a token, each document by itself (and, of decoders, as one stream). Speed is tokens/s
over the training steps, by the clock and by processor time (which other work on the machine lengthens less). Each side is a process of its own, in turn. Without --data, the handbook of the sample task is read, which is small.
The last line is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SIDES = {"causal_lm": ("nanoGPT", "nanoGPT bf16", "Luthier"), "masked_lm": ("HF Trainer", "Luthier")}
WARMUP, DECAY, CLIP = 0.05, 0.1, 1.0
Spent = tuple[float, float]
"""Seconds by the clock, and of the processor."""
HANDBOOK = Path(__file__).parent.parent / "examples" / "support" / "handbook"


# ---- one side, in its own process


def worker(arguments: argparse.Namespace) -> None:
    """Train one side and judge it."""
    import torch

    torch.set_num_threads(arguments.cores)
    kind, side = arguments.kinds[0], arguments.worker
    if side == "Luthier":
        spent, tokens, folder = _luthier(arguments, kind)
    elif kind == "causal_lm":
        spent, tokens, folder = _nanogpt(arguments, bf16=side.endswith("bf16"))
    else:
        spent, tokens, folder = _trainer(arguments)
    found = {
        "tokens": tokens,
        "seconds": spent[0],
        "tokens_per_s": tokens / spent[0],
        "tokens_per_cpu_s": tokens / spent[1],
    }
    found |= _judge_causal(arguments, folder) if kind == "causal_lm" else _judge_masked(arguments, folder)
    arguments.out.write_text(json.dumps(found), encoding="utf-8")


def _texts(path: Path) -> list[str]:
    from luthier.data.read import read

    return [example.text for example in read(path).examples]


def _base(arguments: argparse.Namespace) -> Path:
    from luthier.store.artifacts import path_of
    from luthier.store.database import open_store
    from luthier.store.models import find

    store = open_store()
    return path_of(store, find(store, "start").digest)


def _documents(arguments: argparse.Namespace, path: Path) -> list[list[int]]:
    """Token ids of each document, with the token that ends it (decoders) or those around it (encoders)."""
    from luthier.data.documents import DocumentEncoder
    from luthier.models.load import load_tokenizer

    encoder = DocumentEncoder(load_tokenizer(_base(arguments)))
    close = [encoder.end()] if arguments.kinds[0] == "causal_lm" else encoder.after
    return [encoder.before + tokens.ids + close for tokens in encoder.encode(_texts(path))]


def _luthier(arguments: argparse.Namespace, kind: str) -> tuple[Spent, int, Path]:
    import time

    from luthier.store.artifacts import path_of
    from luthier.store.database import open_store
    from luthier.training.tune import tune

    marks: list[tuple[float, int]] = []  # processor time and tokens after each step
    train: dict[str, Any] = {
        "epochs": 1000,
        "max_tokens": arguments.tokens,
        "learning_rate": arguments.rate,
        "warmup": WARMUP,
    }
    train |= {
        "weight_decay": DECAY,
        "clip": CLIP,
        "batch_size": arguments.rows,
        "max_tokens_per_batch": arguments.batch_tokens,
    }
    made = tune(
        {
            "name": f"luthier-{kind}",
            "model": "start",
            "method": "full",
            "objective": {"name": kind, "length": arguments.length},
            "data": {"train": str(arguments.data)},
            "train": train | json.loads(arguments.train),
        },
        metrics=lambda record: marks.append((time.process_time(), record["tokens"])),
    )
    folder, tokens = path_of(open_store(), made.model.digest), int(made.summary["tokens"])
    steps = marks[-1][0] - marks[0][0]  # between the first step's end and the last's: nothing else happens there
    return (made.summary["train_s"], steps * tokens / (marks[-1][1] - marks[0][1])), tokens, folder


def _nanogpt(arguments: argparse.Namespace, *, bf16: bool) -> tuple[Spent, int, Path]:
    import contextlib
    import time

    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM

    base = _base(arguments)
    stream = torch.tensor([token for ids in _documents(arguments, arguments.data) for token in ids])
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32).train()
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    vectors = [p for p in module.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=arguments.rate, betas=(0.9, 0.95))
    length, rows = arguments.length, arguments.rows
    total = max(1, arguments.tokens // (rows * length))
    began, micro = (time.perf_counter(), time.process_time()), max(1, arguments.batch_tokens // length)
    for step in range(total):
        for group in optimizer.param_groups:
            group["lr"] = _cosine(step, total, arguments.rate)
        starts = torch.randint(len(stream) - length, (rows,))
        for part in starts.split(micro):
            ids = torch.stack([stream[at : at + length + 1] for at in part])
            with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
                logits = module(input_ids=ids[:, :-1], use_cache=False).logits
                loss = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()) * (len(part) / rows)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    spent = (time.perf_counter() - began[0], time.process_time() - began[1])
    folder = arguments.out.parent / "nanogpt"
    module.save_pretrained(str(folder))
    return spent, total * rows * length, folder


def _cosine(step: int, total: int, peak: float) -> float:
    """Linear warmup, then a cosine to a tenth (nanoGPT, get_lr)."""
    warm = max(1, round(WARMUP * total))
    if step < warm:
        return peak * (step + 1) / (warm + 1)
    share = (step - warm) / max(1, total - warm)
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share)))


def _trainer(arguments: argparse.Namespace) -> tuple[Spent, int, Path]:
    import time

    import torch
    import transformers

    from luthier.models.load import load_tokenizer

    base, length = _base(arguments), arguments.length
    stream = [token for ids in _documents(arguments, arguments.data) for token in ids]
    blocks = [{"input_ids": stream[at : at + length]} for at in range(0, len(stream) - length + 1, length)]
    torch.manual_seed(0)
    module = transformers.BertForMaskedLM.from_pretrained(str(base), dtype=torch.float32)
    total = max(1, arguments.tokens // (arguments.rows * length))
    settings = transformers.TrainingArguments(
        output_dir=str(arguments.out.parent / "trainer"),
        per_device_train_batch_size=arguments.rows,
        max_steps=total,
        learning_rate=arguments.rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(WARMUP * total),
        weight_decay=DECAY,
        max_grad_norm=CLIP,
        logging_steps=10**9,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    collator = transformers.DataCollatorForLanguageModeling(load_tokenizer(base), mlm_probability=0.15)
    trainer = transformers.Trainer(module, settings, data_collator=collator, train_dataset=blocks)
    began = (time.perf_counter(), time.process_time())
    trainer.train()
    spent = (time.perf_counter() - began[0], time.process_time() - began[1])
    folder = arguments.out.parent / "hf"
    module.save_pretrained(str(folder))
    return spent, total * arguments.rows * length, folder


# ---- the evaluator


def _judge_causal(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Held-out perplexity: of documents by themselves in windows that overlap by half (each token predicted once), and of the whole stream in blocks."""
    import torch
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    documents, length = _documents(arguments, arguments.held), arguments.length
    windows = []  # (ids, the first predicted place)
    for ids in documents:
        at, done = 0, 1
        while done < len(ids):
            end = min(at + length + 1, len(ids))
            windows.append((ids[at:end], done - at))
            at, done = at + length // 2, end
    stream = [token for ids in documents for token in ids]
    blocks = [(stream[at : at + length + 1], 1) for at in range(0, len(stream) - length, length)]
    return {"perplexity": _perplexity(module, windows), "stream_perplexity": _perplexity(module, blocks)}


def _perplexity(module: Any, windows: list[tuple[list[int], int]]) -> float:
    import torch
    from torch.nn.functional import cross_entropy

    total, count = 0.0, 0
    with torch.inference_mode():
        for ids, first in windows:
            row = torch.tensor([ids])
            logits = module(input_ids=row[:, :-1], use_cache=False).logits[0, first - 1 :].float()
            total += float(cross_entropy(logits, row[0, first:], reduction="sum"))
            count += len(ids) - first
    return math.exp(total / count)


def _judge_masked(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Held-out perplexity of masked tokens: the same 15% of the same blocks for both sides, all shown as [MASK]."""
    import torch
    from torch.nn.functional import cross_entropy

    from luthier.models.load import load_tokenizer

    score = _masked_scores(folder)
    mask_id = load_tokenizer(_base(arguments)).mask_token_id
    total, count, hits = 0.0, 0, 0
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for ids in _documents(arguments, arguments.held):
            inside = ids[1:-1]
            for at in range(0, len(inside), arguments.length - 2):
                part = torch.tensor([ids[0], *inside[at : at + arguments.length - 2], ids[-1]])
                chosen = torch.rand(len(part), generator=generator) < 0.15
                chosen[0] = chosen[-1] = False
                if not chosen.any():
                    continue
                logits = score(torch.where(chosen, mask_id, part)[None])[0, chosen].float()
                total += float(cross_entropy(logits, part[chosen], reduction="sum"))
                count += int(chosen.sum())
                hits += int((logits.argmax(-1) == part[chosen]).sum())
    return {"perplexity": math.exp(total / count), "accuracy": hits / count}


def _masked_scores(folder: Path) -> Any:
    """Token ids -> logits, of what the Trainer or Luthier saved."""
    import torch
    import transformers

    if not (folder / "luthier.json").exists():
        module = transformers.BertForMaskedLM.from_pretrained(str(folder), dtype=torch.float32).eval()
        return lambda ids: module(input_ids=ids).logits
    from luthier.models.adapters import inner_of
    from luthier.models.load import load_model
    from luthier.models.masked_head import masked_head
    from luthier.store.database import open_store

    model = load_model(open_store(), "luthier-masked_lm", dtype="fp32")
    body, head = inner_of(model).eval(), masked_head(model).eval()

    def score(ids: torch.Tensor) -> torch.Tensor:
        features = head(body(input_ids=ids).last_hidden_state[0])
        return (features @ head.weight(body).T + head.bias)[None]

    return score


# ---- all sides, in turn


def measure(kind: str, side: str, arguments: argparse.Namespace, home: Path) -> dict[str, float]:
    """Run one side as a process and read its figures."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        command = [sys.executable, __file__, kind, "--worker", side, "--out", str(out)]
        for name in ("data", "held", "length", "rows", "tokens", "rate", "cores", "batch_tokens", "train"):
            command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(arguments.cores))
        environment = {**os.environ, **threads, "LUTHIER_HOME": str(home), "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{kind}, {side} failed:\n{done.stderr[-4000:]}")
        found: dict[str, float] = json.loads(out.read_text(encoding="utf-8"))
        return found


def prepare(kind: str, arguments: argparse.Namespace, home: Path) -> dict[str, Any]:
    """Cut the data, and make the model with random weights that both sides start from."""
    from luthier.data.read import read, write
    from luthier.data.split import split
    from luthier.models.new import new
    from luthier.store.database import open_store

    home.mkdir(parents=True)
    texts = read(arguments.source)
    if arguments.held_source is None:
        cut = split(texts, train=0.9, validation=0.1, test=0.0)
        texts, held = cut.train, cut.validation
    else:
        held = read(arguments.held_source)
    arguments.data, arguments.held = write(texts, home / "train.jsonl"), write(held, home / "held.jsonl")
    made = new(
        "start",
        data=texts,
        store=open_store(home),
        architecture=arguments.architecture if kind == "causal_lm" else "bert",
        size=arguments.size,
        context_length=arguments.length,
        tokenizer={"train": {"vocabulary": arguments.vocabulary}},
    )
    counts = f"{made.meta['parameters']:,} parameters, {made.meta['without_embeddings']:,} without embeddings"
    print(
        f"{kind}: a {made.meta['model_type']} of {counts}; {arguments.tokens:,} tokens in rows of {arguments.length}",
        flush=True,
    )
    return dict(made.meta)


def main() -> None:
    """Measure every side of every kind and print the ratios."""
    arguments = _arguments()
    if arguments.worker:
        worker(arguments)
        return
    ratios, figures, quality = {}, {}, {}
    for kind in arguments.kinds:
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder) / "home"
            meta = prepare(kind, arguments, home)
            found = {side: measure(kind, side, arguments, home) for side in SIDES[kind]}
        for side, one in found.items():
            print(
                f"  {side:13} {one['tokens_per_s']:9,.0f} tokens/s  {one['tokens_per_cpu_s']:9,.0f} tokens/processor s  perplexity {one['perplexity']:9.2f}",
                flush=True,
            )
            quality |= {
                f"{kind}, {side}: {name}": value
                for name, value in one.items()
                if "perplexity" in name or name == "accuracy"
            }
            figures |= {
                f"{kind}, {side}: {name}": one[name]
                for name in ("tokens", "seconds", "tokens_per_s", "tokens_per_cpu_s")
            }
        figures |= {f"{kind}: parameters": meta["parameters"]}
        ours = found["Luthier"]
        for side in SIDES[kind][:-1]:
            ratios[f"{kind}: speed beside {side}"] = ours["tokens_per_s"] / found[side]["tokens_per_s"]
            ratios[f"{kind}: processor time beside {side}"] = ours["tokens_per_cpu_s"] / found[side]["tokens_per_cpu_s"]
            ratios[f"{kind}: perplexity beside {side}"] = ours["perplexity"] / found[side]["perplexity"]
    for name, value in ratios.items():
        print(f"{name}: {value:.3f}")
    print(json.dumps({"benchmark": "pretrain", "ratios": ratios, "figures": figures, "quality": quality}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help="causal_lm, masked_lm; default: causal_lm")
    parser.add_argument(
        "--quick", action="store_true", help="under five minutes on two cores: 100,000 tokens, a model of 2m"
    )
    parser.add_argument(
        "--data", type=Path, default=HANDBOOK, help="texts: .jsonl with text, .txt, or a folder of .txt and .md"
    )
    parser.add_argument("--held", type=Path, help="held-out texts; default: a tenth of the data")
    parser.add_argument("--architecture", default="llama", choices=("llama", "gpt2"))
    parser.add_argument("--size", default="5m")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rows", type=int, default=16, help="rows a step")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--batch-tokens", type=int, default=2048, help="tokens of a micro-batch")
    parser.add_argument("--train", default="{}", help="more settings of Luthier's train section, as JSON")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--worker", choices=[side for sides in SIDES.values() for side in sides])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    arguments.kinds = arguments.kinds or ["causal_lm"]
    if unknown := set(arguments.kinds) - set(SIDES):
        parser.error(f"kinds are {', '.join(SIDES)}; got {', '.join(sorted(unknown))}")
    if arguments.quick:
        arguments.tokens, arguments.size = min(arguments.tokens, 100_000), "2m"
    arguments.source, arguments.held_source = arguments.data, arguments.held
    return arguments


if __name__ == "__main__":
    main()
