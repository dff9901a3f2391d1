"""Do answers follow their JSON schema? 1,000 random schemas on torch and on llama.cpp.

    python benchmarks/structured.py [--quick] [--schemas N] [--real N]

Schemas nest objects and arrays, with enums, constants, bounds, lengths, patterns, formats, anyOf, oneOf, allOf, references (some to themselves) and
optional, required and further properties (``_schemas.py``). Each is answered by a model of random weights at temperature 1, which knows nothing of JSON
and so tries every way that is left open, and the first of them by SmolLM2-135M too. An answer that ended by itself is judged by the package
jsonschema, formats included; one that ``--limit`` cut off is counted, not judged. The bar is 100% of those that ended. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import jsonschema
from _schemas import random_schema

from luthier.core.dataset import Dataset
from luthier.core.engine import Constraint, Engine, Sampling
from luthier.core.errors import EngineError, InputError
from luthier.core.message import user
from luthier.data.read import read
from luthier.engines._open import open_engine
from luthier.models.new import NewModel, make
from luthier.store.database import Store, open_store
from luthier.store.home import Home

SUPPORT = Path(__file__).parent.parent / "examples" / "support" / "tickets.jsonl"
TINY = {"architecture": "llama", "layers": 2, "width": 32, "heads": 4, "context_length": 2048}
ENGINES = ("torch", "llamacpp")
WORKERS = 8


def random_model(store: Store) -> str:
    """A decoder of random weights whose tokens are bytes and the commonest pieces of the sample task's texts."""
    texts: Dataset = read(str(SUPPORT))
    shape = NewModel.model_validate(TINY | {"tokenizer": {"train": {"vocabulary": 320}}})
    return make(store, shape, texts)[0].name


def answer(engine: Engine, number: int, limit: int) -> tuple[str, str, int, str]:
    """(what came of it, the schema's or the answer's text, tokens, why)."""
    schema = random_schema(random.Random(number))
    asked = Sampling(
        max_new_tokens=limit, temperature=1.0, seed=number, constraint=Constraint("json_schema", json.dumps(schema))
    )
    prompt = user(f"Invent an example of this, as JSON: {json.dumps(schema, ensure_ascii=False)[:400]}")
    try:
        (found,) = engine.generate([prompt], asked)
    except InputError as error:
        return "refused", json.dumps(schema), 0, error.message
    except EngineError as error:  # no answer is no valid answer: it counts against the engine
        return "failed", json.dumps(schema), 0, error.message
    if found.finish_reason != "stop":
        return "cut", found.text, len(found.token_ids), ""
    try:
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        jsonschema.Draft202012Validator(schema, format_checker=checker).validate(json.loads(found.text))
    except (ValueError, jsonschema.ValidationError) as error:
        return "wrong", found.text, len(found.token_ids), str(error).split("\n")[0]
    return "valid", found.text, len(found.token_ids), ""


def ask_all(engine: Engine, title: str, count: int, limit: int) -> dict[str, Any]:
    """Every schema once; what came of them."""
    started = time.perf_counter()
    with ThreadPoolExecutor(WORKERS) as pool:
        found = list(pool.map(lambda number: answer(engine, number, limit), range(count)))
    took = time.perf_counter() - started
    kinds = Counter(kind for kind, _, _, _ in found)
    for number, (kind, text, _, why) in enumerate(found):
        if kind in ("wrong", "refused", "failed"):
            print(f"  schema {number} {kind}: {why[:200]} | {text[:300]}", flush=True)
    tokens = sum(count for _, _, count, _ in found)
    ended = kinds["valid"] + kinds["wrong"] + kinds["failed"]
    print(
        f"{title:24} {kinds['valid']}/{ended} valid, {kinds['cut']} cut, {kinds['refused']} refused, "
        f"{kinds['failed']} failed; {tokens:,} tokens, {took:.0f} s",
        flush=True,
    )
    return {
        "schemas": count,
        "valid": kinds["valid"],
        "wrong": kinds["wrong"],
        "cut": kinds["cut"],
        "refused": kinds["refused"],
        "failed": kinds["failed"],
        "tokens": tokens,
    }


def main() -> int:
    """Run, print, and say with the exit code whether the bar was met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100 schemas, 3 of them also by SmolLM2-135M")
    parser.add_argument("--schemas", type=int, help="schemas for the random model (1000)")
    parser.add_argument("--real", type=int, help="the first of them that SmolLM2-135M answers too (100; 0: none)")
    parser.add_argument(
        "--limit", type=int, default=700, help="tokens of an answer of the random model; SmolLM2-135M gets a third"
    )
    options = parser.parse_args()
    count = options.schemas or (100 if options.quick else 1000)
    real = options.real if options.real is not None else (3 if options.quick else 100)

    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Home(Path(folder)).root)
        name = random_model(store)
        for kind in ENGINES:
            settings = {"context_length": 2048, "parallel": WORKERS} if kind == "llamacpp" else {}
            engine = open_engine(store, name, kind, settings)
            figures[f"random weights, {kind}"] = ask_all(engine, f"random weights, {kind}", count, options.limit)
            engine.close()
    if real:
        from luthier.models.pull import pull

        store = open_store()
        name = pull("smollm2-135m", store=store).name
        for kind in ENGINES:
            engine = open_engine(store, name, kind, {"context_length": 1024} if kind == "llamacpp" else {})
            figures[f"smollm2-135m, {kind}"] = ask_all(engine, f"smollm2-135m, {kind}", real, options.limit // 3)
            engine.close()
    ended = {title: each["valid"] + each["wrong"] + each["failed"] for title, each in figures.items()}
    quality = {title: each["valid"] / max(ended[title], 1) for title, each in figures.items()}
    met = all(share == 1.0 for share in quality.values()) and not any(each["refused"] for each in figures.values())
    print(f"bar: every answer that ended follows its schema, no schema is refused: {'met' if met else 'MISSED'}")
    print(json.dumps({"benchmark": "structured", "ratios": {}, "figures": figures, "quality": quality}))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
