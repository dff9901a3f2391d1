"""An attention with learned keys and values as a gated sum of two attentions: He et al. 2022, equations 5 to 7.

head = (1 - lambda(x)) Attn(q, K, V) + lambda(x) Attn(q, P_k, P_v), with lambda the share that the prefix's scores have of all. Written with plain
products and a softmax of its own for each part, as an attention implementation of an untouched model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Prefixes = Mapping[str, tuple[Tensor, Tensor, Callable[[Tensor], Tensor] | None]]
"""Name of an attention -> P_k and P_v, both (length, kv_heads * width), and the gate of queries from the attention's input, or None."""


def install(model: Any, prefixes: Prefixes) -> None:
    """Let ``model`` compute the attentions named in ``prefixes`` by the equations above."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    inputs: dict[int, Tensor] = {}
    by_module = {id(model.get_submodule(name)): value for name, value in prefixes.items()}
    for name in prefixes:
        module = model.get_submodule(name)
        module.register_forward_pre_hook(
            lambda m, a, k: inputs.__setitem__(id(m), a[0] if a else k["hidden_states"]), with_kwargs=True
        )

    def attend(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, **kwargs: Any) -> Any:
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * scaling
        for extra in (kwargs.get("position_bias"), mask):
            scores = scores if extra is None else scores + extra
        out = torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)
        if id(module) in by_module:
            p_k, p_v, gate = by_module[id(module)]
            p_k, p_v = (
                each.view(len(each), -1, q.shape[-1]).transpose(0, 1).repeat_interleave(group, 0) for each in (p_k, p_v)
            )
            g = torch.ones(q.shape[0], q.shape[2]) if gate is None else gate(inputs[id(module)])
            g = g[:, None, :, None]
            own = torch.einsum("bhqd,hld->bhql", q, p_k) * scaling * g
            lam = torch.sigmoid(own.logsumexp(-1) - scores.logsumexp(-1))[..., None]
            out = (1 - lam) * out + lam * torch.einsum("bhql,hld->bhqd", own.softmax(-1), p_v) * g
        return out.transpose(1, 2), None

    ALL_ATTENTION_FUNCTIONS.register("reference", attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register("reference", ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    model.set_attn_implementation("reference")


IDS = torch.tensor([[5, 9, 30, 7, 12, 3], [8, 6, 40, 11, 2, 2]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])


def said(inner: Any, kind: str) -> Tensor:
    """Hidden states or logits at real tokens."""
    if kind == "t5":
        return inner(input_ids=IDS, attention_mask=MASK, decoder_input_ids=IDS.flip(1)).logits
    if kind == "bert":
        return inner(input_ids=IDS, attention_mask=MASK).last_hidden_state[MASK.bool()]
    return inner(input_ids=IDS, attention_mask=MASK).logits[MASK.bool()]


def compare(ours: Tensor, theirs: Tensor, own: list[Tensor], other: list[Tensor]) -> None:
    """Outputs and the gradients of a weighted sum of them are the same."""
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.manual_seed(9)
    weights = torch.randn_like(ours)
    mine = torch.autograd.grad((ours * weights).sum(), own)
    for one, two in zip(mine, torch.autograd.grad((theirs * weights).sum(), other), strict=True):
        assert float(two.abs().max()) > 0
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def same_in_every_way_of_reading(module: Any, monkeypatch: Any) -> None:
    """A decoder's logits do not depend on what follows, on a cache, on how rows are laid out, or on the kernel."""
    from luthier.core.engine import Sampling
    from luthier.models import attention, cascade
    from luthier.models.generate import Answering
    from luthier.models.prefix import PrefixMemory
    from luthier.models.score import Row, packed_log_probs, score_batches

    module.eval()
    cpu = torch.device("cpu")
    ids = torch.tensor([[5, 9, 30, 7, 12, 3, 25, 14]])
    with torch.no_grad():
        whole = module(ids).logits
        other = ids.clone()
        other[0, 5:] = 40
        near = {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(module(other).logits[:, :5], whole[:, :5], **near)
        cache, steps = None, []
        for token in ids[0]:
            out = module(token.view(1, 1), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits)
        assert cache.get_seq_length() == ids.shape[1], "the cache holds real tokens only"
        torch.testing.assert_close(torch.cat(steps, 1), whole, **near)
        with monkeypatch.context() as patched:
            patched.setattr(attention, "MOST_SCORES", 0)  # the fused kernel, as on a GPU
            torch.testing.assert_close(module(ids).logits, whole, **near)

        def alone(prompt: list[int], tail: list[int]) -> float:
            log_probs = module(torch.tensor([[*prompt, *tail]])).logits[0].log_softmax(-1)
            return sum(float(log_probs[len(prompt) + n - 1, token]) for n, token in enumerate(tail))

        begin = list(range(20, 84))  # long enough to be read once for all
        rows = [Row([*begin, 5], [[7, 8], [7, 9, 4], [3]]), Row([*begin, 6, 2], [[1], [7, 8]]), Row(begin, [[2, 2]])]
        expected = [[alone(list(row.prompt), list(tail)) for tail in row.continuations] for row in rows]
        packed = packed_log_probs(module, rows, cpu)
        assert cascade.supports(module, cpu)
        scored: dict[int, list[float]] = {}
        for batch in score_batches(module, rows, cpu, max_batch_tokens=24, memory=PrefixMemory(), owner="a"):
            scored |= {index: [one.logprob for one in read] for index, read in batch}
        for number, values in enumerate(expected):
            torch.testing.assert_close(packed[number], torch.tensor(values), **near)
            torch.testing.assert_close(torch.tensor(scored[number]), torch.tensor(values), **near)

        prompts = [[*begin, 5, 6], [9, 8]]
        answers: list[list[int]] = [[], []]
        batch = Answering(prompts, Sampling(temperature=0.0, max_new_tokens=4), cpu)
        while not batch.done:
            numbers, tokens, _ = batch.step(module)
            for number, token in zip(numbers, tokens, strict=True):
                answers[number].append(token)
            batch.finish(number for number in numbers if len(answers[number]) == 4)
        for prompt, answer in zip(prompts, answers, strict=True):
            grown = list(prompt)
            for token in answer:
                assert int(module(torch.tensor([grown])).logits[0, -1].argmax()) == token
                grown.append(token)


def rows_answer_as_alone(name: str, build: Any, configs: list[Any], tmp_path: Path) -> None:
    """A batch whose rows have adapters of their own (or none) gives each the logits that it has alone, with padding and through a cache."""
    from luthier.models import rows
    from luthier.models.adapters import load_adapter, save_adapter
    from luthier.models.load import load_model
    from luthier.store.database import open_store

    for number, config in enumerate(configs):
        model = build(load_model(open_store(), name, dtype="fp32", device="cpu"), config)
        torch.manual_seed(number)
        for parameter in model.module.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.5)
        save_adapter(model.module, tmp_path / str(number), name)
    base = load_model(open_store(), name, dtype="fp32", device="cpu")
    from luthier.models.load import Attached

    names: list[str] = []
    for number in range(len(configs)):
        module, known = load_adapter(base, tmp_path / str(number))
        base.attached[str(number)] = Attached(base.record, known, module)
        names.append(known)
    assert module.base_model.per_row
    who = [names[1], None, names[0], names[1]]
    ids = torch.tensor([[0, 0, 5, 9, 30], [8, 6, 40, 11, 7], [0, 4, 4, 21, 3], [5, 9, 30, 17, 60]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    following = torch.tensor([[3], [4], [5], [6]])

    def read(at: slice) -> Tensor:
        first = module(ids[at], attention_mask=mask[at], position_ids=positions[at], use_cache=True)
        longer = torch.cat([mask[at], torch.ones_like(following[at])], 1)
        after = module(
            following[at],
            attention_mask=longer,
            position_ids=positions[at][:, -1:] + 1,
            past_key_values=first.past_key_values,
        )
        return torch.cat([first.logits[:, -1:], after.logits], 1)

    with torch.no_grad():
        module.set_adapter(names[0])
        with rows.answering(who):
            together = read(slice(None))
        for row, own in enumerate(who):
            at = slice(row, row + 1)
            if own is None:
                with module.disable_adapter():
                    alone = read(at)
            else:
                module.set_adapter(own)
                alone = read(at)
            torch.testing.assert_close(together[at], alone, rtol=1e-4, atol=1e-5)
        full = torch.tensor([[8, 6, 40, 11, 7], [5, 9, 30, 17, 60]])  # no padding: no mask is given
        with rows.answering([None, names[0]]):
            together = module(full).logits
        with module.disable_adapter():
            torch.testing.assert_close(together[:1], module(full[:1]).logits, rtol=1e-4, atol=1e-5)
        module.set_adapter(names[0])
        torch.testing.assert_close(together[1:], module(full[1:]).logits, rtol=1e-4, atol=1e-5)
