"""The running batch of the torch engine: rows that come and go answer as alone, and do not get into one another's way."""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from tests.engines.test_mixed import make
from tests.engines.test_torch import FP32, LONG, PROMPTS, make_adapter, same

from luthier.core.engine import Constraint, Delta, Engine, Generation, Sampling, ScoreRequest
from luthier.core.errors import EngineError, InputError, NotFoundError, UnsupportedError
from luthier.core.message import Message, Tool, user
from luthier.engines._open import open_engine, open_many
from luthier.engines._places import Row, answered
from luthier.engines._scheduler import Scheduler
from luthier.models.prefix import PrefixMemory
from luthier.models.pull import pull
from luthier.store.database import open_store

ANSWER = Sampling(max_new_tokens=12)
SYSTEM = "You answer the letters of a shop that lends violins. Be short, be friendly, name the next step. " * 2


@pytest.fixture
def family(tiny_decoder: str) -> Iterator[dict[str, Engine]]:
    """The base and three LoRA adapters, in one memory."""
    for seed, name in enumerate(("one", "two", "three"), 1):
        make_adapter(tiny_decoder, name, seed)
    engines = open_many(open_store(), [tiny_decoder, "one", "two", "three"], "torch", FP32)
    yield engines
    for engine in engines.values():
        engine.close()


def scheduler_of(engine: Engine) -> Scheduler:
    found: Any = engine
    return found.shared_base.scheduler  # type: ignore[no-any-return]


def memory_of(engine: Engine) -> PrefixMemory:
    found: Any = engine
    return found.shared_base.memory  # type: ignore[no-any-return]


def apart(engine: Any, prompts: Any, sampling: Sampling = ANSWER) -> list[Generation]:
    """The answers of a batch of their own: the other way to answer, that knows nothing of slots."""
    answers: list[Generation] = engine.generate_as([engine.key] * len(prompts), prompts, sampling)
    return answers


class Stepped:
    """The batch of an engine, step by step in this thread."""

    def __init__(self, engine: Engine) -> None:
        self.engine: Any = engine
        self.scheduler = scheduler_of(engine)
        self.rows: list[Row] = []
        self.told: SimpleQueue[Any] = SimpleQueue()

    def ask(self, engine: Engine, prompt: Any, sampling: Sampling = ANSWER) -> Row:
        asked: Any = engine
        answer = asked._answer(asked._prompt_ids([prompt], sampling)[0], sampling)
        row: Row = asked._row(answer, asked._samplers([answer], sampling)[0], self.told, streams=True)
        row.answer.begin()
        self.scheduler._arrived.append(row)
        self.rows.append(row)
        return row

    def step(self) -> None:
        with self.scheduler.base.turn() as loaded:
            self.scheduler._turn(loaded)

    def finish(self, most: int = 500) -> None:
        for _ in range(most):
            if self.scheduler._is_idle():
                return
            self.step()
        raise AssertionError("the rows never end")

    def errors(self) -> dict[Row, Exception]:
        found = {}
        while not self.told.empty():
            row, what = self.told.get()
            if isinstance(what, Exception):
                found[row] = what
        return found


def in_threads(work: list[Any]) -> list[Any]:
    """What each of these gives, or raises, all at the same time."""
    out: list[Any] = [None] * len(work)

    def run(place: int) -> None:
        try:
            out[place] = work[place]()
        except Exception as error:  # noqa: BLE001
            out[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    return out


def streamed(engine: Engine, prompt: Any, sampling: Sampling) -> Generation:
    deltas = list(engine.stream(prompt, sampling))
    last = deltas[-1].generation
    assert last is not None
    assert "".join(d.text for d in deltas) == last.text
    assert tuple(token for d in deltas for token in d.tokens) == last.tokens
    return last


SAMPLINGS = [
    ANSWER,
    Sampling(max_new_tokens=20, temperature=1.1, top_p=0.9, seed=3),
    Sampling(max_new_tokens=9, temperature=0.8, top_k=20, min_p=0.05, seed=4, logprobs=2),
    Sampling(max_new_tokens=15, temperature=1.3, seed=5, presence_penalty=0.8, frequency_penalty=0.4, stop=("a",)),
    Sampling(max_new_tokens=7, repetition_penalty=1.4, logit_bias=((40, 3.0),)),
    Sampling(max_new_tokens=30, constraint=Constraint("regex", "[a-d]{3,6}")),
]


@pytest.mark.parametrize("seed", range(3))
def test_random_arrivals_answer_as_alone(family: dict[str, Engine], seed: int) -> None:
    """Rows of four adapters and six samplings, that come between the steps of others and of which some are given up."""
    draw = random.Random(seed)
    batch = Stepped(family["one"])
    cases = []
    for _ in range(25):
        engine, prompt, sampling = (draw.choice(list(c)) for c in (family.values(), PROMPTS, SAMPLINGS))
        row = batch.ask(engine, prompt, sampling)
        row.cancelled = draw.random() < 0.1
        cases.append((row, engine, prompt, sampling))
        for _ in range(draw.randint(0, 4)):
            batch.step()
    batch.finish()
    assert batch.errors() == {}
    assert batch.scheduler.stats.rows > 15
    for row, engine, prompt, sampling in cases:
        if row.cancelled:
            continue
        (expected,) = apart(engine, [prompt], sampling)
        found = row.answer.generation()
        same(found, expected)
        assert [t.data for t in found.tokens] == [t.data for t in expected.tokens]


def test_fifty_adapters_answer_random_requests_each_as_alone(tiny_decoder: str) -> None:
    names = [f"adapter-{n}" for n in range(50)]
    for seed, name in enumerate(names):
        make_adapter(tiny_decoder, name, seed)
    engines = open_many(open_store(), names, "torch", FP32)
    alone = {name: apart(engine, PROMPTS[:2]) for name, engine in engines.items()}
    assert len({tuple((g.token_ids, g.logprob) for g in answers) for answers in alone.values()}) == 50
    draw = random.Random(0)
    asked = [(draw.choice(names), draw.randrange(2)) for _ in range(120)]

    def client(mine: list[tuple[str, int]]) -> list[Generation]:
        return [
            engines[name].generate([PROMPTS[place]], ANSWER)[0]
            if number % 2
            else streamed(engines[name], PROMPTS[place], ANSWER)
            for number, (name, place) in enumerate(mine)
        ]

    parts = [asked[start::8] for start in range(8)]
    for mine, found in zip(parts, in_threads([lambda mine=mine: client(mine) for mine in parts]), strict=True):
        assert not isinstance(found, Exception), found
        for (name, place), answer in zip(mine, found, strict=True):
            same(answer, alone[name][place])
    for engine in engines.values():
        engine.close()


def test_rows_run_side_by_side_and_leave_at_once(family: dict[str, Engine]) -> None:
    batch = Stepped(family["one"])
    first = batch.ask(family["one"], PROMPTS[0], Sampling(max_new_tokens=40))
    batch.step()
    others = [batch.ask(family[name], PROMPTS[0], Sampling(max_new_tokens=3)) for name in ("two", "three")]
    before = batch.scheduler.stats.steps
    while any(row.slot is not None or not row.answer.finish_reason for row in others):
        batch.step()
        assert first.slot == 0  # and it grows on
    assert batch.scheduler.stats.steps - before <= 5
    assert batch.scheduler.running == 1
    first.cancelled = True
    batch.step()
    assert batch.scheduler.running == 0 and batch.scheduler._places.slots is not None
    assert batch.scheduler._places.slots.free == batch.scheduler.serving.max_running


def test_a_stream_that_is_closed_gives_its_place_up(family: dict[str, Engine]) -> None:
    scheduler = scheduler_of(family["one"])
    stream = family["one"].stream(PROMPTS[0], Sampling(max_new_tokens=400))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert family["one"].generate(PROMPTS[:1], Sampling(max_new_tokens=1))
    assert scheduler.stats.answer_tokens < 400


def test_who_came_first_is_admitted_first(tiny_decoder: str) -> None:
    engine = open_engine(open_store(), tiny_decoder, "torch", {**FP32, "max_running": 2})
    batch = Stepped(engine)
    rows = [batch.ask(engine, PROMPTS[n], Sampling(max_new_tokens=6 - n)) for n in range(5)]
    order: list[Row] = []
    while not batch.scheduler._is_idle():
        batch.step()
        order += [row for row in rows if row.slot is not None and row not in order]
        assert batch.scheduler.running <= 2
    assert order == rows


def test_a_long_prompt_is_read_in_pieces_beside_answers_that_grow(tiny_decoder: str) -> None:
    engine = open_engine(open_store(), tiny_decoder, "torch", {**FP32, "max_batch_tokens": 80})  # 20 in a step
    batch = Stepped(engine)
    growing = batch.ask(engine, "Once", Sampling(max_new_tokens=60))
    batch.step()
    long = batch.ask(engine, user(LONG * 6), ANSWER)
    for step in range(1, 6):
        length = len(growing.ids)
        batch.step()
        assert len(growing.ids) == length + 1
        assert long.fed == 20 * step
    batch.finish()
    same(long.answer.generation(), apart(engine, [user(LONG * 6)])[0])


def test_memory_is_bounded_and_rows_that_lose_their_place_answer_all_the_same(tiny_decoder: str) -> None:
    engine = open_engine(open_store(), tiny_decoder, "torch", {**FP32, "max_running": 12, "cache_mb": 1})
    batch = Stepped(engine)
    sampling = Sampling(max_new_tokens=300, temperature=1.5, seed=1)
    prompts = [*("ab" * n for n in range(100, 112)), *PROMPTS]
    rows = [batch.ask(engine, prompt, sampling) for prompt in prompts]
    most = 0
    while not batch.scheduler._is_idle():
        batch.step()
        slots = batch.scheduler._places.slots
        assert slots is not None
        most = max(most, slots.bytes_of(slots.columns) * slots.rows)
    assert 0 < most <= 1e6
    assert batch.scheduler.stats.put_back > 0 and batch.errors() == {}
    for row, prompt in zip(rows, prompts, strict=True):
        same(row.answer.generation(), apart(engine, [prompt], sampling)[0])


@pytest.mark.parametrize("method", ["dora", "adapter", "prefix", "layer_norm", "ladder_side"])
def test_groups_that_do_not_mix_take_turns(request: pytest.FixtureRequest, method: str) -> None:
    """Adapters of one kind and LoRA ones, asked at the same time; those whose attention is of another kind answer by themselves."""
    assert request.getfixturevalue("home")
    for seed, name in enumerate(("x", "y")):
        base = make(request, method, "llama", name, seed)
    make(request, "lora", "llama", "z", 5)
    engines = open_many(open_store(), [base, "x", "y", "z"], "torch", FP32)
    alone = {name: apart(engine, PROMPTS) for name, engine in engines.items()}
    found = in_threads([
        (lambda n=n, p=p: streamed(engines[n], PROMPTS[p], ANSWER)) for p in range(len(PROMPTS)) for n in engines
    ])  # fmt: skip
    for place, answer in enumerate(found):
        assert not isinstance(answer, Exception), answer
        same(answer, alone[list(engines)[place % 4]][place // 4])
    assert (scheduler_of(engines["x"]).stats.rows == 4 * len(PROMPTS)) == (method != "ladder_side")
    for engine in engines.values():
        engine.close()


def test_an_adapter_that_leaves_takes_its_own_rows_only(family: dict[str, Engine]) -> None:
    batch = Stepped(family["one"])
    rows = {name: batch.ask(engine, PROMPTS[0], Sampling(max_new_tokens=20)) for name, engine in family.items()}
    for _ in range(3):
        batch.step()
    waiting = batch.ask(family["two"], PROMPTS[1])
    family["two"].close()
    batch.finish()
    errors = batch.errors()
    assert set(errors) == {rows["two"], waiting}
    assert all(isinstance(error, EngineError) and "closed" in str(error) for error in errors.values())
    for name, engine in family.items():
        if name != "two":
            same(rows[name].answer.generation(), apart(engine, PROMPTS[:1], Sampling(max_new_tokens=20))[0])
    with pytest.raises(EngineError, match="closed"):
        family["two"].generate(PROMPTS[:1], ANSWER)
    with pytest.raises(EngineError, match="closed"):
        list(family["two"].stream(PROMPTS[0], ANSWER))


def test_adapters_come_and_go_under_load(tiny_decoder: str) -> None:
    """Nothing that is asked of the base is lost or wrong while adapters are opened, asked and closed beside it."""
    store = open_store()
    for seed in range(6):
        make_adapter(tiny_decoder, f"swap-{seed}", seed + 10)
    shared: dict[Any, Any] = {}
    base = open_engine(store, tiny_decoder, "torch", FP32, shared=shared)
    expected = apart(base, PROMPTS)
    swapped = threading.Event()

    def ask() -> list[Generation]:
        out = []
        while not swapped.is_set():
            out += [streamed(base, prompt, ANSWER) for prompt in PROMPTS]
        return out

    def swap() -> list[Generation]:
        try:
            out = []
            for round_ in range(3):
                for seed in range(6):
                    engine = open_engine(store, f"swap-{seed}", "torch", FP32, shared=shared)
                    out.append(streamed(engine, PROMPTS[round_], ANSWER))
                    engine.close()
            return out
        finally:
            swapped.set()

    first, second, swaps = in_threads([ask, ask, swap])
    for answers in (first, second):
        assert len(answers) >= len(PROMPTS)
        for place, answer in enumerate(answers):
            same(answer, expected[place % len(PROMPTS)])
    assert len({(answer.token_ids, answer.logprob) for answer in swaps[:6]}) == 6
    for seed in range(6):
        engine = open_engine(store, f"swap-{seed}", "torch", FP32)
        same(swaps[seed], apart(engine, PROMPTS[:1])[0])
        engine.close()
    base.close()


class Broken:
    """A constraint whose state is lost after some tokens."""

    done = False

    def __init__(self, after: int, in_mask: bool) -> None:
        self.left, self.in_mask = after, in_mask

    def mask(self, logits: torch.Tensor) -> None:
        if self.in_mask and self.left == 0:
            raise InputError("constraint is too complex to follow")

    def take(self, token: int) -> None:
        self.left -= 1
        if not self.in_mask and self.left == 0:
            raise ValueError("a bug")


def test_a_row_that_fails_hurts_no_other(family: dict[str, Engine]) -> None:
    batch = Stepped(family["one"])
    good = [batch.ask(family[name], PROMPTS[0]) for name in ("one", "two")]
    bad = [batch.ask(family["one"], PROMPTS[1]) for _ in range(3)]
    bad[0].sampler.follower = Broken(3, in_mask=True)
    bad[1].sampler.follower = Broken(5, in_mask=False)
    bad[2].sampler.follower = Broken(0, in_mask=True)
    batch.finish()
    errors = batch.errors()
    assert set(errors) == set(bad)
    assert isinstance(errors[bad[0]], InputError) and isinstance(errors[bad[1]], EngineError)
    for row, name in zip(good, ("one", "two"), strict=True):
        same(row.answer.generation(), apart(family[name], PROMPTS[:1])[0])


@pytest.mark.parametrize(
    ("message", "kind"), [("shape mismatch", "answering failed"), ("can't allocate memory", "memory ran")]
)
def test_a_forward_that_fails_is_tried_row_by_row(
    family: dict[str, Engine], monkeypatch: pytest.MonkeyPatch, message: str, kind: str
) -> None:
    from luthier.models.slots import Slots

    plain = Slots.forward

    def forward(self: Slots, module: Any, feeds: Any, *, mixed: bool = False) -> torch.Tensor:
        if any(feed.slot == 1 for feed in feeds):
            raise RuntimeError(message)
        return plain(self, module, feeds, mixed=mixed)

    monkeypatch.setattr(Slots, "forward", forward)
    batch = Stepped(family["one"])
    rows = [batch.ask(family["one"], prompt) for prompt in PROMPTS[:3]]
    batch.finish()
    errors = batch.errors()
    assert list(errors) == (
        [rows[1]] if kind == "answering failed" else []
    )  # what found no memory waited, and got another place
    for row, prompt in zip(rows, PROMPTS, strict=False):
        if row not in errors:
            same(row.answer.generation(), apart(family["one"], [prompt])[0])


def test_memory_that_is_not_there_for_one_row_is_an_error_in_words(
    family: dict[str, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(*_args: Any, **_kwargs: Any) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("luthier.models.slots.Slots.forward", forward)
    with pytest.raises(EngineError, match="memory ran out while answering"):
        family["one"].generate(PROMPTS[:3], ANSWER)
    monkeypatch.undo()
    assert len(family["one"].generate(PROMPTS[:3], ANSWER)) == 3


def test_what_a_prompt_begins_with_is_not_read_again(family: dict[str, Engine]) -> None:
    read: list[int] = []
    engine: Any = family["one"]
    with engine.shared_base.using(engine.key) as loaded:
        hook = loaded.module.get_input_embeddings().register_forward_hook(lambda _m, a, _o: read.append(a[0].numel()))
    asked = [
        (Message("system", SYSTEM), Message("user", text)) for text in ("Where is it?", "I want a refund.", "你好")
    ]
    first = engine.generate(asked[:1], ANSWER)[0]
    whole, read[:] = sum(read) - len(first.token_ids), []
    assert first.cached_tokens == 0 and whole >= first.prompt_tokens > 60
    second = engine.generate(asked[1:2], ANSWER)[0]
    assert second.cached_tokens > 50
    assert max(read) == second.prompt_tokens - second.cached_tokens
    other = family["two"].generate(asked[1:2], ANSWER)[0]
    assert other.cached_tokens == 0  # its own keys and values
    read[:] = []
    turns = (*asked[1], Message("assistant", second.text), Message("user", "Thanks."))
    third = engine.generate([turns], ANSWER)[0]
    assert third.cached_tokens >= second.prompt_tokens
    hook.remove()
    memory_of(engine).forget(engine.key)
    for prompt, answer in ((asked[1], second), (turns, third)):
        fresh = engine.generate([prompt], ANSWER)[0]
        assert fresh.cached_tokens == 0
        same(fresh, answer)
        memory_of(engine).forget(engine.key)


def test_rows_that_arrive_together_read_what_they_share_once(family: dict[str, Engine]) -> None:
    read: list[int] = []
    engine: Any = family["one"]
    with engine.shared_base.using(engine.key) as loaded:
        hook = loaded.module.get_input_embeddings().register_forward_hook(lambda _m, a, _o: read.append(a[0].numel()))
    asked = [(Message("system", SYSTEM), Message("user", text)) for text in ("one", "two", "three", "four")]
    found = engine.generate(asked, Sampling(max_new_tokens=2))
    hook.remove()
    assert sum(answer.cached_tokens > 50 for answer in found) == 3
    assert sum(read) < 2 * found[0].prompt_tokens
    for prompt, answer in zip(asked, found, strict=True):
        same(answer, apart(engine, [prompt], Sampling(max_new_tokens=2))[0])


def test_log_probabilities_of_tokens_in_bytes(family: dict[str, Engine]) -> None:
    sampling = Sampling(max_new_tokens=30, temperature=1.5, seed=2, logprobs=3)
    answer = streamed(family["one"], PROMPTS[0], sampling)
    assert len(answer.tokens) == len(answer.token_ids) == answer.completion_tokens
    assert b"".join(t.data for t in answer.tokens).decode(errors="replace") == answer.text
    assert sum(t.logprob for t in answer.tokens) == pytest.approx(answer.logprob, abs=1e-4)
    assert all(len(t.top) == 3 and t.top[0][1] >= t.top[1][1] >= t.top[2][1] for t in answer.tokens)
    assert all(t.logprob <= t.top[0][1] + 1e-6 for t in answer.tokens)
    stop = answer.text[4:6]
    cut = streamed(
        family["one"], PROMPTS[0], Sampling(max_new_tokens=30, temperature=1.5, seed=2, logprobs=0, stop=(stop,))
    )
    assert [t.data for t in cut.tokens] == [t.data for t in answer.tokens][: len(cut.tokens)]
    assert len(cut.tokens) == len(cut.token_ids) < len(answer.tokens)


@pytest.mark.parametrize("few", [True, False])
def test_answers_have_the_form_that_is_asked(family: dict[str, Engine], few: bool) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [1, 22]}, "b": {"type": "boolean"}},
        "required": ["n", "b"],
    }
    sampling = Sampling(
        max_new_tokens=80, temperature=1.8, seed=1, constraint=Constraint("json_schema", json.dumps(schema | {"additionalProperties": False}))
    )  # fmt: skip
    prompts = PROMPTS[:3] if few else [PROMPTS[0]] * 10
    for answer in family["two"].generate(prompts, sampling):
        assert answer.finish_reason == "stop"
        assert set(json.loads(answer.text)) == {"n", "b"}
    with pytest.raises(InputError, match="json_schema"):
        family["two"].generate(prompts, Sampling(constraint=Constraint("json_schema", "{")))


@pytest.fixture
def roomy(home: Path, tiny_decoder_path: Path, tmp_path: Path) -> Engine:
    """The tiny decoder with a longer context."""
    folder = shutil.copytree(tiny_decoder_path, tmp_path / "roomy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    return open_engine(open_store(), pull(f"file:{folder}", alias="roomy").name, "torch", FP32)


@pytest.mark.parametrize("parallel", [True, False])
def test_tools_are_called_as_asked(roomy: Engine, parallel: bool) -> None:
    """A random model calls nothing by itself; what is forced comes out as calls, streamed and whole."""
    schema = {
        "type": "object",
        "properties": {"id": {"enum": [7, 88]}},
        "required": ["id"],
        "additionalProperties": False,
    }
    tools = (Tool("track", "Find a parcel.", json.dumps(schema)), Tool("refund", "Pay back.", json.dumps(schema)))
    for choice in ("required", "refund"):
        sampling = Sampling(
            max_new_tokens=200, temperature=1.0, seed=3, tools=tools, tool_choice=choice, parallel_tool_calls=parallel
        )
        answer = streamed(roomy, PROMPTS[0], sampling)
        assert answer.finish_reason == "tool_calls" and answer.text == ""
        assert parallel or len(answer.tool_calls) == 1
        for call in answer.tool_calls:
            assert call.name in (("track", "refund") if choice == "required" else ("refund",))
            assert json.loads(call.arguments)["id"] in (7, 88) and call.id
    deltas = list(roomy.stream(PROMPTS[0], sampling))
    told = [call for delta in deltas for call in delta.tool_calls]
    assert [call.name for call in told] == ["refund"]
    free = roomy.generate(PROMPTS[:1], Sampling(max_new_tokens=8, tools=tools))[0]
    plain = roomy.generate(PROMPTS[:1], Sampling(max_new_tokens=8, tools=tools, tool_choice="none"))[0]
    assert free.prompt_tokens > plain.prompt_tokens and free.finish_reason != "tool_calls"


REPEATS = user("Say it again: " + "the parcel has not arrived and the courier does not answer; " * 3)


@pytest.mark.parametrize("how", ["lookup", "draft", "twin"])
def test_answers_are_the_same_with_guesses(tiny_decoder: str, tmp_path: Path, how: str) -> None:
    """Of one caller and of several, greedy and drawn, with penalties, stop texts and constraints; from look-up, from a model that guesses badly and
    from the model itself, which is always right."""
    plain = open_engine(open_store(), tiny_decoder, "torch", FP32)
    options: dict[str, Any] = {"lookup": {"lookup": True}, "twin": {"draft": tiny_decoder}}.get(how, {"draft": "small"})
    if how == "draft":
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(7)
        base: Any = plain
        with base.shared_base.using(None) as loaded:
            config = LlamaConfig(**{**loaded.module.config.to_dict(), "num_hidden_layers": 1})
            shutil.copytree(loaded.folder, tmp_path / "small")
        LlamaForCausalLM(config).save_pretrained(str(tmp_path / "small"))
        pull(f"file:{tmp_path / 'small'}", alias="small")
    engine = open_engine(open_store(), tiny_decoder, "torch", {**FP32, **options})
    for sampling in (*SAMPLINGS, Sampling(max_new_tokens=60), Sampling(max_new_tokens=40, temperature=0.3, seed=8)):
        for prompts in ([REPEATS], [REPEATS, *PROMPTS[:2]], [REPEATS] * 6):
            expected = apart(plain, prompts, sampling)
            for found, want in zip(engine.generate(prompts, sampling), expected, strict=True):
                same(found, want)
                assert [t.data for t in found.tokens] == [t.data for t in want.tokens]
    stats = scheduler_of(engine).stats
    assert 0 < stats.accepted_tokens <= stats.guessed_tokens
    if how == "twin":
        assert stats.accepted_tokens > 0.8 * stats.guessed_tokens
        assert stats.steps < 0.7 * stats.answer_tokens
    engine.close()
    plain.close()


def test_drafts_that_do_not_fit_are_refused(tiny_decoder: str, tiny_gpt2: str, tiny_encoder: str) -> None:
    store = open_store()
    for name, kind in ((tiny_encoder, UnsupportedError), ("nothing", NotFoundError)):
        with pytest.raises(kind):
            open_engine(store, tiny_decoder, "torch", {**FP32, "draft": name})
    with pytest.raises(InputError, match="two ways"):
        open_engine(store, tiny_decoder, "torch", {**FP32, "draft": tiny_gpt2, "lookup": True})
    open_engine(
        store, tiny_decoder, "torch", {**FP32, "draft": tiny_gpt2}
    ).close()  # the same tokens, another architecture


def test_a_guesser_that_fails_costs_no_answer(tiny_decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(open_store(), tiny_decoder, "torch", {**FP32, "lookup": True})
    expected = apart(engine, [REPEATS])

    def guess(*_args: Any) -> list[list[int]]:
        raise RuntimeError("a bug")

    monkeypatch.setattr("luthier.models.speculate.LookUp.guess", guess)
    same(engine.generate([REPEATS], ANSWER)[0], expected[0])


def test_beams_find_likelier_answers_whole_and_streamed(family: dict[str, Engine]) -> None:
    greedy = family["one"].generate(PROMPTS, Sampling(max_new_tokens=10))
    sampling = Sampling(max_new_tokens=10, beams=5, logprobs=1)
    found = family["one"].generate(PROMPTS, sampling)
    means = [
        [(g.logprob or 0.0) / (g.completion_tokens + (g.finish_reason == "stop")) for g in gs] for gs in (found, greedy)
    ]
    assert sum(a > b + 1e-4 for a, b in zip(*means, strict=True)) >= 2
    for prompt, answer in zip(PROMPTS, found, strict=True):
        same(streamed(family["one"], prompt, sampling), answer)
        assert len(answer.tokens) == answer.completion_tokens
    stop = found[1].text[3:5]
    cut = family["one"].generate([PROMPTS[1]], Sampling(max_new_tokens=10, beams=5, stop=(stop,)))[0]
    assert cut.text == found[1].text[: found[1].text.index(stop)] and cut.finish_reason == "stop"
    with pytest.raises(InputError, match="temperature must be 0"):
        family["one"].generate(PROMPTS, Sampling(beams=2, temperature=0.7))


def test_the_number_of_threads_is_that_which_is_asked(tiny_decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the thread that answers too; loading the weights does not set it back."""
    from luthier.models.slots import Slots

    seen: list[tuple[str, int]] = []
    plain = Slots.forward

    def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append((threading.current_thread().name, torch.get_num_threads()))
        return plain(*args, **kwargs)

    monkeypatch.setattr(Slots, "forward", forward)
    before = torch.get_num_threads()
    try:
        for count in (3, 2):
            engine = open_engine(open_store(), tiny_decoder, "torch", {**FP32, "threads": count})
            engine.generate(PROMPTS[:1], Sampling(max_new_tokens=2))
            assert set(seen) == {("luthier-answers", count)}
            engine.close()
            seen.clear()
    finally:
        torch.set_num_threads(before)


def test_what_cannot_be_asked_is_named(family: dict[str, Engine], tiny_decoder: str) -> None:
    with pytest.raises(InputError, match="logit_bias names token 999999; one has tokens 0 to"):
        family["one"].generate(PROMPTS[:1], Sampling(logit_bias=((999_999, 1.0),)))
    from luthier.core.message import Image

    with pytest.raises(UnsupportedError, match="images"):
        family["one"].stream((Message("user", "see", images=(Image("https://a.b/c.png"),)),), ANSWER)


def test_a_batch_that_breaks_leaves_nobody_waiting(family: dict[str, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    def turn(*_args: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Scheduler, "_turn", turn)
    for found in in_threads([lambda: family["one"].generate(PROMPTS[:1], ANSWER)] * 3):
        assert isinstance(found, EngineError) and "ZeroDivisionError" in str(found)
    monkeypatch.undo()
    assert family["one"].generate(PROMPTS[:1], ANSWER)[0].text


def test_scores_and_large_batches_beside_answers(family: dict[str, Engine]) -> None:
    one: Any = family["one"]
    expected = apart(one, [PROMPTS[0]] * 12)
    scores = one.score([ScoreRequest(PROMPTS[0], ("a", "b"))])

    def stream_many() -> list[Generation]:
        return [streamed(family["two"], prompt, ANSWER) for prompt in PROMPTS]

    alone = apart(family["two"], PROMPTS)
    many, scored, streams = in_threads([
        lambda: one.generate([PROMPTS[0]] * 12, ANSWER),
        lambda: one.score([ScoreRequest(PROMPTS[0], ("a", "b"))]),
        stream_many,
    ])  # fmt: skip
    for got, want in (*zip(many, expected, strict=True), *zip(streams, alone, strict=True)):
        same(got, want)
    assert [s.logprob for s in scored[0]] == pytest.approx([s.logprob for s in scores[0]], abs=1e-4)


def test_nothing_is_told_twice_and_the_end_comes_last(family: dict[str, Engine]) -> None:
    one: Any = family["one"]
    told: SimpleQueue[Any] = SimpleQueue()
    answer = one._answer(one._prompt_ids([PROMPTS[0]], ANSWER)[0], ANSWER)
    row = one._row(answer, one._samplers([answer], ANSWER)[0], told, streams=True)
    events = [what for _, what in answered(one.shared_base.scheduler.submit, [row])]
    assert events[-1] is None and all(isinstance(each, Delta) for each in events[:-1])
    assert len(events) - 1 == len(answer.generation().token_ids) + (answer.finish_reason == "stop")
    assert told.empty()
