"""Rows that come and go, each at its own length, against ``transformers``' own generation."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from tests.models.test_generate import CPU, SHAPE, reference
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from luthier.models import slots as slots_module
from luthier.models.decode import logits
from luthier.models.slots import Feed, Slots, supports


def llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(**SHAPE))


def gpt2() -> Any:
    config = GPT2Config(vocab_size=71, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3)
    return GPT2LMHeadModel(config)


def mistral() -> Any:
    return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=5))


def gemma3() -> Any:
    """Windows in every second layer."""
    kinds = ["sliding_attention", "full_attention"]
    return Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, head_dim=8, sliding_window=6, layer_types=kinds))


def made(model: Any) -> Any:
    torch.manual_seed(0)
    return model().eval()


class Row:
    def __init__(self, prompt: list[int], limit: int) -> None:
        self.ids, self.prompt, self.limit, self.fed, self.slot = list(prompt), prompt, limit, 0, -1

    @property
    def over(self) -> bool:
        return len(self.ids) == len(self.prompt) + self.limit


@torch.inference_mode()
def serve(model: Any, rows: list[Row], arrivals: dict[int, list[Row]], slots: Slots, chunk: int) -> None:
    """Greedy answers; ``arrivals`` says which rows come at which step."""
    step, waiting, running = 0, list(rows), []
    while waiting or running or any(at >= step for at in arrivals):
        waiting += arrivals.get(step, [])
        while waiting and slots.free:
            waiting[0].slot = slots.open()
            running.append(waiting.pop(0))
        step += 1
        feeds = [Feed(row.slot, row.fed, row.ids[row.fed : row.fed + chunk]) for row in running]
        if not feeds:
            continue
        tokens = logits(model, slots.forward(model, feeds)).argmax(-1).tolist()
        for row, feed, token in zip(running, feeds, tokens, strict=True):
            row.fed += len(feed.tokens)
            if row.fed == len(row.ids):
                row.ids.append(token)
        for row in [row for row in running if row.over]:
            slots.close(row.slot)
            running.remove(row)


@pytest.mark.parametrize("kind", [llama, gpt2, mistral, gemma3])
@pytest.mark.parametrize(("chunk", "count"), [(64, 3), (4, 2), (1, 5)])
def test_rows_that_come_and_go_answer_as_alone(kind: Any, chunk: int, count: int) -> None:
    model, draw = made(kind), random.Random(chunk)
    assert supports(model, CPU)
    rows = [Row([draw.randrange(71) for _ in range(draw.randint(1, 30))], draw.randint(1, 12)) for _ in range(9)]
    arrivals: dict[int, list[Row]] = {}
    for row in rows[2:]:
        arrivals.setdefault(draw.randint(0, 25), []).append(row)
    serve(model, rows[:2], arrivals, Slots(count, CPU), chunk)
    for row in rows:
        assert row.ids[len(row.prompt) :] == reference(model, row.prompt, row.limit)


@torch.inference_mode()
def test_hidden_states_are_those_of_a_plain_forward() -> None:
    """In the order of the feeds, however the tokens are cut; several reads of one row among them."""
    model = made(llama)
    ids = [[(7 * i + n) % 71 for i in range(20)] for n in range(3)]
    plain = [model.model(torch.tensor([row])).last_hidden_state[0] for row in ids]
    slots = Slots(4, CPU)
    places = [slots.open() for _ in ids]
    slots.forward(model, [Feed(place, 0, row[:9]) for place, row in zip(places, ids, strict=True)])
    found = slots.forward(
        model,
        [Feed(places[2], 9, ids[2][9:15], reads=4), Feed(places[0], 9, ids[0][9:10]), Feed(places[1], 9, ids[1][9:])],
    )
    expected = torch.cat([plain[2][11:15], plain[0][9:10], plain[1][19:20]])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    again = slots.forward(model, [Feed(places[2], 12, ids[2][12:14])])  # written over: what stood there counts no more
    torch.testing.assert_close(again, plain[2][13:14], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_what_was_read_serves_another_row_and_buffers_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots_module, "COLUMNS", 8)
    model, ids = made(llama), [(5 * i) % 71 for i in range(40)]
    slots = Slots(3, CPU)
    assert slots.bytes_of(10) == 0
    first = slots.open()
    slots.forward(model, [Feed(first, 0, ids[:30])])
    assert slots.columns == 32
    kept = slots.read(first, 0, 25)
    assert slots.bytes_of(25) == sum(k.nbytes + v.nbytes for k, v in kept)
    slots.close(first)
    assert slots.open() == first  # and the other one is put elsewhere
    other = slots.open()
    slots.write(other, 0, kept, 20)
    slots.forward(model, [Feed(first, 0, [1, 2, 3])])
    found = slots.forward(model, [Feed(other, 20, ids[20:])])
    torch.testing.assert_close(found, model.model(torch.tensor([ids])).last_hidden_state[0, -1:], atol=1e-5, rtol=1e-5)


def test_neighbours_of_like_lengths_are_one_call_and_others_are_not() -> None:
    def runs(starts: list[int], slots: list[int], window: int | None = None) -> list[tuple[int, bool]]:
        step = slots_module._Step(Slots(8, CPU), [Feed(s, n, [1]) for s, n in zip(slots, starts, strict=True)], None)
        found = step.plan(window, torch.float32)
        return [(run.tokens.stop - run.tokens.start, run.mask is not None) for run in found]

    assert runs([50, 50, 50], [0, 1, 2]) == [(3, False)]
    assert runs([50, 60, 70], [0, 1, 2]) == [(3, True)]
    assert runs([50, 60, 70], [0, 1, 3]) == [(2, True), (1, False)]
    assert runs([50, 900, 910], [0, 1, 2]) == [(1, False), (2, True)]
    assert runs([50, 900, 910], [0, 1, 2], window=40) == [(1, False), (2, True)]
    assert runs([900, 900], [0, 1], window=40) == [(2, False)]


@pytest.mark.parametrize("kind", ["soft cap", "own attention"])
def test_models_with_other_attention_are_told_apart(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "soft cap":
        model = made(lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8)))
    else:
        model = made(llama)
        plain = model.model.layers[1].self_attn.forward
        monkeypatch.setattr(
            model.model.layers[1].self_attn,
            "forward",
            lambda hidden_states, **kwargs: (
                plain(hidden_states, **kwargs)[0] + hidden_states.mean(1, keepdim=True),
                None,
            ),
        )
    before = model.config._attn_implementation
    assert not supports(model, CPU)
    assert model.config._attn_implementation == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@torch.inference_mode()
def test_rows_on_a_gpu_answer_as_on_the_cpu() -> None:
    device, model = torch.device("cuda"), made(llama)
    ids = [[(7 * i + n) % 71 for i in range(5 + 9 * n)] for n in range(4)]
    hidden = []
    for where in (CPU, device):
        slots, moved = Slots(6, where), model.to(where)
        places = [slots.open() for _ in ids]
        slots.close(places[1])
        slots.forward(moved, [Feed(places[n], 0, ids[n]) for n in (0, 2, 3)])
        hidden.append(slots.forward(moved, [Feed(places[n], len(ids[n]), [n + 1]) for n in (3, 0, 2)]).cpu())
    torch.testing.assert_close(hidden[0], hidden[1], atol=1e-3, rtol=1e-3)
