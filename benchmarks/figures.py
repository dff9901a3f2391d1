"""What ``luthier methods`` and the page of methods tell of each method's cost, written into the package.

    python benchmarks/figures.py [--results OUT/results.jsonl]

Parameters and memory are counted from the shapes of the two models that come with Luthier, with each method's default options; memory in
bf16 with micro-batches of 2,048 tokens. Speeds (tokens a processor second over those of lora on the same model) are medians over the lines that
``benchmarks/methods.py`` wrote; without ``--results``, those that are there already stay.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).parents[1] / "src" / "luthier" / "methods" / "figures.yaml"
HEAD = """# What the methods cost in the models that come with Luthier: parameters and memory (MB) are counted from shapes,
# speed (tokens a second over those of lora) is measured. Written by: python benchmarks/figures.py --results OUT/results.jsonl
"""


def shapes() -> dict[str, Any]:
    """The two models without their weights, in bf16."""
    from dataclasses import replace

    import torch
    from transformers import BertConfig, LlamaConfig

    from luthier.core.model import ModelRecord
    from luthier.models.shapes import sketch_of

    decoder = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    encoder = BertConfig(hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=12)
    found = {
        "smollm2-135m": sketch_of(ModelRecord("smollm2-135m", "base", "decoder", ""), decoder),
        "minilm-l6": sketch_of(ModelRecord("minilm-l6", "base", "encoder", ""), encoder, labels=("a", "b")),
    }
    return {name: replace(sketch, dtype=torch.bfloat16) for name, sketch in found.items()}


def counted() -> dict[str, dict[str, dict[str, Any]]]:
    """Method -> model -> parameters and memory."""
    from luthier.methods._describe import count_in
    from luthier.training.preflight import training_mb

    found: dict[str, dict[str, dict[str, Any]]] = {}
    for model, sketch in shapes().items():
        for method, one in count_in(sketch, memory=training_mb).items():
            if one.why_not:
                row: dict[str, Any] = {"why_not": one.why_not}
            else:
                row = {"trained": one.trained, "total": one.total, "memory_mb": round(one.memory_mb or 0.0)}
            found.setdefault(method, {})[model] = row
    return found


def measured(path: Path) -> tuple[dict[tuple[str, str], float], str]:
    """(method, model) -> speed over that of lora, in tokens a processor second; and what that was measured on."""
    from _methods_report import summary

    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    cores = max((line["cores"] for line in lines if "tokens_per_cpu_s" in line), default=1)
    speeds = {
        (row["method"], row["model"]): row["sides"]["luthier"]["tokens_per_s"]
        for row in summary(lines, "tokens_per_cpu_s")
    }
    ratios = {
        (method, model): round(speed / speeds["lora", model], 2)
        for (method, model), speed in speeds.items()
        if ("lora", model) in speeds
    }
    return ratios, machine(cores)


def machine(cores: int) -> str:
    """What the speeds were measured on."""
    path = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in path.read_text().splitlines() if line.startswith("model name")]
        if path.exists()
        else []
    )
    return f"{cores} {'core' if cores == 1 else 'cores'} of {names[0] if names else platform.machine()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="lines that benchmarks/methods.py wrote")
    given = parser.parse_args()
    before = yaml.safe_load(FILE.read_text(encoding="utf-8")) if FILE.exists() else {"speed": "", "methods": {}}
    methods = counted()
    if given.results:
        speeds, told = measured(given.results)
    else:
        rows = before["methods"].items()
        speeds = {(m, model): row["speed"] for m, models in rows for model, row in models.items() if "speed" in row}
        told = before["speed"]
    for (method, model), speed in speeds.items():
        if "trained" in methods.get(method, {}).get(model, {}):
            methods[method][model]["speed"] = speed
    text = yaml.safe_dump({"speed": told, "methods": methods}, sort_keys=False, allow_unicode=True, width=200)
    FILE.write_text(HEAD + text, encoding="utf-8")
    print(f"{FILE}: {len(methods)} methods, {len(speeds)} speeds")


if __name__ == "__main__":
    main()
