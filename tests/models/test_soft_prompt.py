"""Soft prompts against PEFT's own forward: outputs, gradients, scores, and where they stand among other adapters."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from luthier.core.catalog import load
from luthier.core.engine import Sampling
from luthier.core.errors import MismatchError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.models import cascade, soft_prompt
from luthier.models.adapters import inner_of, peft_models
from luthier.models.attach import attach, detach, save_trained, select
from luthier.models.decode import hidden_states, logits
from luthier.models.generate import Answering
from luthier.models.load import LoadedModel, load_model
from luthier.models.merge import merge
from luthier.models.prefix import PrefixMemory
from luthier.models.score import Row, packed_log_probs, score_batches, score_rows
from luthier.models.seq2seq import pair_log_probs, score_pairs
from luthier.store.database import open_store

CPU = torch.device("cpu")
WORDS, N = 61, 5
TINY: dict[str, Any] = {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**TINY, "intermediate_size": 48, "num_key_value_heads": 2, "initializer_range": 0.4}
SOFT: dict[str, Any] = {
    "prompt": ("PROMPT_TUNING", {}),
    "p_tuning": ("P_TUNING", {}),
    "p_tuning lstm": ("P_TUNING", {"encoder_reparameterization_type": "LSTM"}),
    "prefix": ("PREFIX_TUNING", {}),
    "prefix mlp": ("PREFIX_TUNING", {"prefix_projection": True}),
}


def bases(name: str) -> Any:
    torch.manual_seed(3)
    if name == "llama":
        return LlamaForCausalLM(LlamaConfig(**LLAMA)).eval()
    if name == "windows":
        return MistralForCausalLM(MistralConfig(**LLAMA, sliding_window=8)).eval()
    return GPT2LMHeadModel(GPT2Config(**TINY, n_inner=48, initializer_range=0.4, bos_token_id=1, eos_token_id=2)).eval()


def softened(name: str, kind: str, tokens: int = N) -> Any:
    """PEFT's own model: a causal language model with a soft prompt."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    type_, options = SOFT[kind]
    config = PEFT_TYPE_TO_CONFIG_MAPPING[type_](task_type="CAUSAL_LM", num_virtual_tokens=tokens, **options)
    base = bases(name)
    torch.manual_seed(7)
    return get_peft_model(base, config).eval()


def gradients(model: Any, value: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value, [p for p in model.parameters() if p.requires_grad]))


def naive(model: Any, prompt: list[int], continuation: list[int]) -> Tensor:
    """Sum of log p(token | everything before it), from PEFT's forward of one row."""
    row = model(input_ids=torch.tensor([prompt + continuation])).logits[0, -len(prompt + continuation) :]
    log_probs = row.log_softmax(-1)
    return sum(log_probs[len(prompt) - 1 + i, token] for i, token in enumerate(continuation))  # type: ignore[return-value]


def random_rows(seed: int, shared: int = 0) -> list[Row]:
    draw = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [draw.randrange(3, WORDS) for _ in range(draw.randint(low, high))]

    head = ids(shared, shared)
    return [Row(head + ids(1, 9), [ids(1, 4) for _ in range(draw.randint(1, 4))]) for _ in range(draw.randint(2, 6))]


@pytest.mark.parametrize("kind", SOFT)
@pytest.mark.parametrize("base", ["llama", "gpt2", "windows"])
def test_logits_and_gradients_are_those_of_peft(base: str, kind: str) -> None:
    model = softened(base, kind)
    ids = torch.randint(3, WORDS, (3, 11))
    ours, theirs = logits(model, hidden_states(model, ids)), model(input_ids=ids).logits[:, -11:]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    model.double()  # sums of many terms: without rounding there is no doubt which are equal
    ours, theirs = logits(model, hidden_states(model, ids)), model(input_ids=ids).logits[:, -11:]
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    weights = torch.randn_like(ours)
    both = [gradients(model, (each * weights).sum()) for each in (ours, theirs)]
    for one, other in zip(*both, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()
        assert other.norm() > 0


@pytest.mark.parametrize("shared", [0, 20])
@pytest.mark.parametrize("kind", SOFT)
@pytest.mark.parametrize("base", ["llama", "gpt2", "windows"])
def test_packed_scores_and_their_gradients_are_those_of_peft(base: str, kind: str, shared: int) -> None:
    model, rows = softened(base, kind), random_rows(1, shared)
    ours = packed_log_probs(model, rows, CPU)
    theirs = [torch.stack([naive(model, list(r.prompt), list(c)) for c in r.continuations]) for r in rows]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    one, other = gradients(model, torch.cat(ours).sum()), gradients(model, torch.cat(theirs).sum())
    for got, want in zip(one, other, strict=True):
        assert (got - want).norm() <= 1e-4 * want.norm()


@pytest.mark.parametrize("kind", ["prompt", "p_tuning", "p_tuning lstm"])
@pytest.mark.parametrize("base", ["t5", "bart"])
def test_encoders_of_encoder_decoders_read_them_first(base: str, kind: str) -> None:
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    torch.manual_seed(3)
    sizes: dict[str, Any] = {"vocab_size": WORDS, "d_model": 32, "decoder_start_token_id": 0}
    if base == "t5":
        module: Any = T5ForConditionalGeneration(T5Config(**sizes, d_kv=8, d_ff=64, num_layers=2, num_heads=4)).eval()
    else:
        layers = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
        heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
        module = BartForConditionalGeneration(BartConfig(**sizes, **layers, **heads, max_position_embeddings=64)).eval()
    type_, options = SOFT[kind]
    config = PEFT_TYPE_TO_CONFIG_MAPPING[type_](
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=N, num_transformer_submodules=1, **options
    )
    model, rows = get_peft_model(module, config).eval(), random_rows(1)
    ours = pair_log_probs(model, rows, [0], 0, CPU)

    def theirs(source: list[int], target: list[int]) -> Tensor:
        out = model(
            input_ids=torch.tensor([source]),
            attention_mask=torch.ones(1, len(source)),
            decoder_input_ids=torch.tensor([[0, *target[:-1]]]),
        ).logits[0]
        return out.log_softmax(-1)[torch.arange(len(target)), torch.tensor(target)].sum()

    expected = [torch.stack([theirs(list(r.prompt), list(c)) for c in r.continuations]) for r in rows]
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)
    one, other = gradients(model, torch.cat(ours).sum()), gradients(model, torch.cat(expected).sum())
    for got, want in zip(one, other, strict=True):
        assert (got - want).norm() <= 1e-4 * want.norm()
    for most in (1, 4096):
        found: dict[int, list[float]] = {}
        for batch in score_pairs(model, rows, [0], 0, CPU, max_batch_tokens=most):
            found |= {index: [each.logprob for each in read] for index, read in batch}
        for index, want in enumerate(expected):
            assert found[index] == pytest.approx(want.tolist(), abs=1e-4)


@pytest.mark.parametrize("way", ["cascade", "masked"])
@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize("base", ["llama", "gpt2", "windows"])
@pytest.mark.parametrize("tokens", [N, 90])
def test_scores_depend_on_no_batch_no_order_and_no_memory(
    base: str, kind: str, tokens: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = softened(base, kind, tokens), random_rows(2, 40) + random_rows(3, 0)
    if way == "masked":
        monkeypatch.setattr("luthier.models.score.supports", lambda module, device: False)
    else:
        assert cascade.supports(model, CPU) == (base != "windows")
    with torch.no_grad():
        expected = [[float(naive(model, list(r.prompt), list(c))) for c in r.continuations] for r in rows]
    for most in (1, 40, 4096):
        for got, want in zip(score_rows(model, rows, CPU, max_batch_tokens=most), expected, strict=True):
            assert got == pytest.approx(want, abs=2e-4)
    memory = PrefixMemory()
    for chosen in (rows, rows[::-1], rows[:1], [Row([*rows[0].prompt, 8, 9], [[4, 5]])], rows[1:2]):
        out: dict[int, list[float]] = {}
        for batch in score_batches(model, chosen, CPU, memory=memory, owner="soft"):
            out |= {index: [each.logprob for each in read] for index, read in batch}
        for index, row in enumerate(chosen):
            with torch.no_grad():
                want = [float(naive(model, list(row.prompt), list(c))) for c in row.continuations]
            assert out[index] == pytest.approx(want, abs=2e-4)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_answers_where_layers_see_a_window(kind: str) -> None:
    """The window passes over the soft prompt as over any tokens."""
    model = softened("windows", kind, 6)
    prompts = [[5, 9, 30, 7], [8, 6, 40, 11]]
    batch = Answering(prompts, Sampling(max_new_tokens=12), CPU, full_attention=False)
    said: list[list[int]] = [[], []]
    for _ in range(12):
        rows, tokens, _ = batch.step(model)
        for row, token in zip(rows, tokens, strict=True):
            said[row].append(token)
    for prompt, new in zip(prompts, said, strict=True):
        ids = list(prompt)
        for token in new:
            with torch.no_grad():
                assert int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids.append(token)


def test_nothing_is_added_without_a_soft_prompt() -> None:
    model = bases("llama")
    assert soft_prompt.virtual_tokens(model) == 0
    assert soft_prompt.keys_values(model) == []
    soft = softened("llama", "prefix")
    ids = torch.randint(3, WORDS, (2, 6))
    with torch.no_grad(), soft.disable_adapter():
        assert soft_prompt.virtual_tokens(soft) == 0
        assert torch.equal(hidden_states(soft, ids), hidden_states(model, ids))
    assert soft_prompt.virtual_tokens(soft) == N


def test_keys_and_values_of_a_loaded_prompt_are_computed_once(tmp_path: Path) -> None:
    soft = softened("llama", "prompt")
    soft.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(bases("llama"), str(tmp_path)).eval()
    runs = []
    loaded.base_model.model.register_forward_hook(lambda *_: runs.append(1))
    ids = torch.randint(3, WORDS, (2, 6))
    with torch.no_grad():
        first = hidden_states(loaded, ids)
        assert len(runs) == 2  # the virtual tokens, then the real ones
        assert torch.equal(hidden_states(loaded, ids), first)
        assert len(runs) == 3
        loaded.prompt_encoder["default"].embedding.weight.mul_(2)
        assert not torch.allclose(hidden_states(loaded, ids), first)
        assert len(runs) == 5
    hidden_states(loaded, ids)  # with gradients, they are computed with theirs
    assert len(runs) == 7


METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "prompt": ("prompt", {"tokens": 4, "init": "random"}),
    "another prompt": ("prompt", {"tokens": 9}),
    "p_tuning": ("p_tuning", {"tokens": 3, "encoder": "lstm"}),
    "prefix": ("prefix", {"tokens": 6}),
    "bare prefix": ("prefix", {"tokens": 2, "mlp": False}),
    "lora": ("lora", {}),
}
IDS = torch.tensor([[5, 9, 30, 7], [8, 6, 40, 11]])


def answer(model: LoadedModel) -> Tensor:
    """What the model makes of some tokens, from its own path (decoders) or the pooled vectors."""
    model.module.eval()
    with torch.no_grad():
        if model.architecture == "encoder":
            return model.module.pooled(IDS, torch.ones_like(IDS))  # type: ignore[no-any-return]
        return hidden_states(model.module, IDS)


def tuned(base: str, name: str, folder: Path) -> Tensor:
    """Save a random adapter for ``base``; what it answers."""
    method, options = METHODS[name]
    model = load_model(open_store(), base, dtype="fp32", device="cpu")
    model.module.requires_grad_(False)
    entry = load("methods", method)
    torch.manual_seed(len(name))
    model = entry(model, entry.configure(options))
    for parameter in model.module.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    save_trained(model, folder, {"saves": "adapter"})
    return answer(model)


def record(name: str, model: LoadedModel) -> ModelRecord:
    return ModelRecord(name, "adapter", model.architecture, "")


@pytest.mark.parametrize("order", [list(METHODS), list(METHODS)[::-1]], ids=["prompts first", "lora first"])
@pytest.mark.parametrize("base", ["tiny_decoder", "tiny_gpt2", "tiny_encoder"])
def test_soft_prompts_and_layers_share_one_base(
    base: str, order: list[str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    name = request.getfixturevalue(base)
    expected = {each: tuned(name, each, tmp_path / each) for each in order}
    model = load_model(open_store(), name, dtype="fp32", device="cpu")
    bare, own = answer(model), {id(p) for p in inner_of(model).parameters()}
    context = model.context_length
    for each in order:
        attach(model, record(each, model), each, folder=tmp_path / each)
        assert torch.equal(answer(model), bare)
    assert len(peft_models(model)) == 4  # two prompts share one, and so do the two prefixes
    for each in [*order, None, *order[::-1], "lora", None, "prefix"]:
        select(model, each)
        assert model.context_length == context - (METHODS[each][1].get("tokens", 0) if each else 0)
        if each is None:
            assert torch.equal(answer(model), bare)
        else:
            torch.testing.assert_close(answer(model), expected[each], rtol=1e-5, atol=1e-5)
    for number, each in enumerate(order):
        detach(model, each)
        for other in order[number + 1 :]:
            select(model, other)
            torch.testing.assert_close(answer(model), expected[other], rtol=1e-5, atol=1e-5)
        select(model, None)
        assert torch.equal(answer(model), bare)
        assert model.context_length == context
    assert not hasattr(inner_of(model), "peft_config")
    assert {id(p) for p in inner_of(model).parameters()} == own


@pytest.mark.parametrize("name", [name for name in METHODS if name != "lora"])
@pytest.mark.parametrize("base", ["tiny_decoder", "tiny_gpt2", "tiny_encoder"])
def test_peft_reads_the_files(base: str, name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    store_name = request.getfixturevalue(base)
    expected = tuned(store_name, name, tmp_path)
    model = load_model(open_store(), store_name, dtype="fp32", device="cpu")
    peft = PeftModel.from_pretrained(inner_of(model), str(tmp_path)).eval()
    with torch.no_grad():
        if model.architecture == "decoder":
            got = peft(input_ids=IDS, output_hidden_states=True).hidden_states[-1][:, -4:]
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        else:  # the virtual tokens come first, and are not pooled
            got = peft(input_ids=IDS, attention_mask=torch.ones_like(IDS)).last_hidden_state[:, -4:]
            torch.testing.assert_close(got.mean(1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_vectors_of_an_encoder_depend_on_no_padding(name: str, tiny_encoder: str, tmp_path: Path) -> None:
    tuned(tiny_encoder, name, tmp_path)
    model = load_model(open_store(), tiny_encoder, dtype="fp32", device="cpu")
    attach(model, record(name, model), name, folder=tmp_path)
    select(model, name)
    ids = torch.tensor([[5, 9, 30, 7], [8, 6, 0, 0]])
    with torch.no_grad():
        both = model.module.pooled(ids, torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]))
        alone = model.module.pooled(ids[1:, :2], torch.ones(1, 2, dtype=torch.long))
    torch.testing.assert_close(both[1:], alone, rtol=1e-5, atol=1e-5)
    assert model.module.body_is_frozen


@pytest.mark.parametrize("name", ["prompt", "p_tuning", "prefix"])
@pytest.mark.parametrize("base", ["tiny_decoder", "tiny_encoder"])
def test_nothing_is_merged(base: str, name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    store_name = request.getfixturevalue(base)
    tuned(store_name, name, tmp_path)
    model = load_model(open_store(), store_name, dtype="fp32", device="cpu")
    attach(model, record(name, model), name, folder=tmp_path)
    select(model, name)
    with pytest.raises(UnsupportedError, match=r"is a soft prompt: .* nothing to merge\n.*engine torch"):
        merge(model)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("prefix", {"token_dim": 32}, "token_dim must be 16 for tiny-decoder; got 32"),
        ("prefix", {"num_layers": 3}, "num_layers must be 2 for tiny-decoder; got 3"),
        ("prefix", {"num_virtual_tokens": 7}, "does not fit tiny-decoder"),
        ("prompt", {"num_virtual_tokens": 7}, "does not fit tiny-decoder"),
    ],
)
def test_files_that_do_not_fit_leave_the_base_as_it_was(
    name: str, changes: dict[str, Any], said: str, tiny_decoder: str, tmp_path: Path
) -> None:
    tuned(tiny_decoder, name, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    model = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
    bare = answer(model)
    with pytest.raises(MismatchError, match=said):
        attach(model, record(name, model), name, folder=tmp_path)
    assert torch.equal(answer(model), bare)
    assert not hasattr(inner_of(model), "peft_config")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"peft_type": "MULTITASK_PROMPT_TUNING"},
            "type MULTITASK_PROMPT_TUNING cannot be put on a base; types PREFIX_TUNING, P",
        ),
        ({"modules_to_save": ["lm_head"]}, "type PROMPT_TUNING with modules_to_save cannot be put on a base"),
    ],
)
def test_kinds_that_are_not_served_are_refused(
    changes: dict[str, Any], said: str, tiny_decoder: str, tmp_path: Path
) -> None:
    tuned(tiny_decoder, "prompt", tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    model = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
    with pytest.raises(UnsupportedError, match=said) as error:
        attach(model, record("prompt", model), "prompt", folder=tmp_path)
    assert "PeftModel" in (error.value.hint or "")


def test_files_of_peft_that_were_trained_elsewhere_are_read(tiny_decoder: str, tmp_path: Path) -> None:
    """Their configuration may leave sizes out, say how they began, and be for another task."""
    model = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
    for config in (
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, prompt_tuning_init="SAMPLE_VOCAB"),
        PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=8),
    ):
        theirs = get_peft_model(model.module, config).eval()
        theirs.save_pretrained(str(tmp_path))
        with torch.no_grad():
            expected = theirs(input_ids=IDS).logits[:, -4:]
        manifest = {"format": 1, "saves": "adapter", "base": {"name": model.base.name, "digest": model.base.digest}}
        (tmp_path / "luthier.json").write_text(json.dumps(manifest))
        base = load_model(open_store(), tiny_decoder, dtype="fp32", device="cpu")
        attach(base, record("theirs", base), "theirs", folder=tmp_path)
        select(base, "theirs")
        torch.testing.assert_close(logits(base.module, answer(base)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_bf16(name: str, tiny_decoder: str, tmp_path: Path) -> None:
    expected = tuned(tiny_decoder, name, tmp_path)
    model = load_model(open_store(), tiny_decoder, dtype="bf16", device="cpu")
    attach(model, record(name, model), name, folder=tmp_path)
    select(model, name)
    assert {p.dtype for p in model.module.parameters()} == {torch.bfloat16}
    assert {k.dtype for pair in soft_prompt.keys_values(model.module) for k in pair} == {torch.bfloat16}
    torch.testing.assert_close(answer(model).float(), expected, rtol=0.1, atol=0.1)
    rows = random_rows(4, 20)
    with torch.no_grad():
        packed = packed_log_probs(model.module, rows, CPU)
    for got, want in zip(score_rows(model.module, rows, CPU), packed, strict=True):
        assert got == pytest.approx(want.tolist(), abs=0.3)
