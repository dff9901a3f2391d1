"""Several adapters of one base answer in one call as they do alone, whatever the method that made them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.methods.test_battery import CASES, built, fresh

from luthier.core.catalog import load
from luthier.core.engine import Engine, EngineInfo, Generation, Sampling
from luthier.core.errors import EngineError, InputError, UnsupportedError
from luthier.core.message import user
from luthier.core.model import ModelRecord
from luthier.engines._mixed import generate_mixed
from luthier.engines._open import open_engine, open_many
from luthier.models.attach import save_trained
from luthier.models.generate import Answering
from luthier.store.artifacts import put, staged
from luthier.store.database import open_store
from luthier.store.models import register

FP32 = {"dtype": "fp32", "device": "cpu"}
HEAD = "You answer the letters of a shop that lends violins. Be short, be friendly, name the next step. "
TEXTS = ["Where is my parcel?", "refund", HEAD + "My lesson was cancelled twice.", HEAD + "billing", "我的包裹还没有到"]
PROMPTS = [user(text) for text in TEXTS]
ANSWER = Sampling(max_new_tokens=8)
TOGETHER = {"lora", "qlora", "ia3", "adapter", "pfeiffer_adapter", "parallel_adapter", "compacter"}
"""Methods whose adapters one forward takes together."""


def make(request: pytest.FixtureRequest, method: str, kind: str, name: str, seed: int) -> str:
    """Register what ``method`` leaves, with random values; returns its base's name."""
    store = open_store()
    model = built(fresh(request, kind, method), method, seed)
    base = model.base.name
    torch.manual_seed(seed)
    for parameter in model.module.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    with staged(store) as folder:
        save_trained(model, folder, {"saves": load("methods", method).module.SAVES})
        digest, size = put(store, folder)
    register(store, ModelRecord(name, "adapter", model.architecture, digest, size, base=base))
    return base


def alone(engine: Engine, prompts: Sequence[Any], sampling: Sampling = ANSWER) -> list[Generation]:
    return [engine.generate([prompt], sampling)[0] for prompt in prompts]


def same(one: Generation, other: Generation) -> None:
    assert (one.text, one.token_ids, one.finish_reason) == (other.text, other.token_ids, other.finish_reason)
    assert one.prompt_token_ids == other.prompt_token_ids
    assert one.logprob == pytest.approx(other.logprob, abs=1e-5)


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each step of a batch had."""
    steps: list[int] = []
    plain = Answering.step

    def step(self: Answering, module: Any) -> Any:
        steps.append(len(self.rows))
        return plain(self, module)

    monkeypatch.setattr(Answering, "step", step)
    return steps


@pytest.mark.parametrize(("method", "kind"), CASES)
def test_adapters_of_every_method_answer_together_as_alone(
    method: str, kind: str, home: Any, request: pytest.FixtureRequest, forwards: list[int]
) -> None:
    base = make(request, method, kind, "a", 1)
    make(request, method, kind, "b", 2)
    names = ["a", "b"] if kind == "bert" else ["a", "b", base]
    engines = open_many(open_store(), names, "torch", FP32)
    expected = {name: alone(engine, PROMPTS) for name, engine in engines.items()}
    assert [g.logprob for g in expected["a"]] != pytest.approx([g.logprob for g in expected["b"]], abs=1e-4)
    rows = [(name, place) for place in range(len(PROMPTS)) for name in names]
    forwards.clear()
    found = generate_mixed([engines[name] for name, _ in rows], [PROMPTS[place] for _, place in rows], ANSWER)
    for (name, place), answer in zip(rows, found, strict=True):
        same(answer, expected[name][place])
    if method in TOGETHER and kind in ("llama", "gpt2"):
        assert max(forwards) >= 2 * len(PROMPTS)
    again = {name: alone(engine, PROMPTS[:1])[0] for name, engine in engines.items()}
    for name in names:
        same(again[name], expected[name][0])


@pytest.fixture
def shop(request: pytest.FixtureRequest) -> dict[str, Engine]:
    """Adapters of several methods on the tiny decoder, and the decoder itself."""
    home = request.getfixturevalue("home")
    assert home is not None
    made = ["lora", "lora", "ia3", "dora", "adapter", "adapter", "prefix", "layer_norm", "ladder_side", "ladder_side"]
    names = [f"{method}-{seed}" for seed, method in enumerate(made)]
    for seed, (method, name) in enumerate(zip(made, names, strict=True)):
        base = make(request, method, "llama", name, seed)
    return open_many(open_store(), [base, *names], "torch", FP32)


@pytest.mark.parametrize(
    "sampling",
    [
        ANSWER,
        Sampling(max_new_tokens=8, temperature=1.2, top_p=0.9, repetition_penalty=1.1, seed=3),
        Sampling(max_new_tokens=12, stop=("a", "e")),
    ],
)
def test_all_kinds_in_one_call(shop: dict[str, Engine], sampling: Sampling) -> None:
    names = list(shop)
    rows = [(name, place) for place in range(len(PROMPTS)) for name in names]
    told: list[tuple[str, int, int]] = []
    found = generate_mixed(
        [shop[name] for name, _ in rows], [PROMPTS[p] for _, p in rows], sampling, lambda *args: told.append(args)
    )
    for (name, place), answer in zip(rows, found, strict=True):
        same(answer, alone(shop[name], [PROMPTS[place]], sampling)[0])
    counts = [done for _, done, _ in told]
    assert counts == sorted(counts) and told[-1] == ("generate", len(rows), len(rows))


@pytest.mark.parametrize("method", ["lora", "adapter", "ladder_side"])
def test_what_an_adapters_rows_begin_with_is_read_once_by_each(shop: dict[str, Engine], method: str) -> None:
    """Rows of one adapter share their beginning; another adapter's keys and values of the same tokens are its own."""
    names = [name for name in shop if name.startswith(method)]
    asked = [user(HEAD + text) for text in ("one", "two three", "four")]
    expected = {name: alone(shop[name], asked) for name in names}
    for engine in shop.values():
        engine._base.memory.forget(engine.key)  # type: ignore[attr-defined]
    read: list[int] = []
    base: Any = next(iter(shop.values()))
    with base._base.using(None) as loaded:
        embeddings = loaded.module.get_input_embeddings()
    hook = embeddings.register_forward_hook(lambda _m, args, _out: read.append(args[0].shape[1]))
    rows = [(name, place) for place in range(3) for name in names]
    for _ in range(2):
        found = generate_mixed([shop[name] for name, _ in rows], [asked[place] for _, place in rows], ANSWER)
        for (name, place), answer in zip(rows, found, strict=True):
            same(answer, expected[name][place])
    hook.remove()
    if method != "ladder_side":
        assert sum(length > 20 for length in read) == len(names)  # the second call reads none again


def test_small_batches_and_rows_that_end_early(shop: dict[str, Engine]) -> None:
    names = [name for name in shop if name.split("-")[0] in ("lora", "ia3", "tiny")]
    shared: dict[Any, Any] = {}
    narrow = {n: open_engine(open_store(), n, "torch", {**FP32, "max_batch_tokens": 20}, shared=shared) for n in names}
    sampling = Sampling(max_new_tokens=30, temperature=1.5, seed=1, stop=("a", "e", "1"))
    rows = [(name, prompt) for prompt in PROMPTS for name in names]
    expected = [shop[name].generate([prompt], sampling)[0] for name, prompt in rows]
    assert len({len(each.token_ids) for each in expected}) > 2
    for engines in (shop, narrow):
        found = generate_mixed([engines[name] for name, _ in rows], [prompt for _, prompt in rows], sampling)
        for one, other in zip(found, expected, strict=True):
            same(one, other)


class Silent:
    """An engine that cannot answer."""

    info = EngineInfo(model="silent", engine="none", capabilities=frozenset({"embed"}))


def test_engines_of_other_sorts_and_bad_calls(shop: dict[str, Engine]) -> None:
    fake = open_engine(open_store(), "fake")
    lora, base = shop["lora-0"], next(iter(shop.values()))
    found = generate_mixed([fake, lora, fake, base], ["one", PROMPTS[0], "two", PROMPTS[0]], ANSWER)
    assert [g.text for g in found[::2]] == [g.text for g in fake.generate(["one", "two"], ANSWER)]
    same(found[1], alone(lora, PROMPTS[:1])[0])
    same(found[3], alone(base, PROMPTS[:1])[0])
    assert generate_mixed([], []) == []
    with pytest.raises(InputError, match="got 1 engines for 2 prompts"):
        generate_mixed([lora], ["a", "b"])
    with pytest.raises(InputError, match="reads 512 in all"):
        generate_mixed([lora, base], ["a" * 600, "b"], ANSWER)
    with pytest.raises(UnsupportedError, match="cannot generate"):
        generate_mixed([Silent()], ["a"])  # type: ignore[list-item]
    lora.close()
    with pytest.raises(EngineError, match="closed"):
        generate_mixed([base, lora], PROMPTS[:2], ANSWER)
