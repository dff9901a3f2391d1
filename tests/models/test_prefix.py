from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.models.prefix import PrefixMemory, common_length, common_prefix, expanded, shared_prefix

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config).eval()


def values(length: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.zeros(1, 1, length, 4), torch.zeros(1, 1, length, 4))]


def test_common_beginnings() -> None:
    assert common_length([1, 2, 3], [1, 2, 4]) == 2
    assert common_length([], [1]) == 0
    assert common_length(range(1000), [*range(777), -1, *range(778, 1000)]) == 777
    assert common_prefix([range(12), range(12)]) == 11
    assert common_prefix([range(12), range(10)]) == 9
    assert common_prefix([[5, 6], [5, 7], [5, 6, 7]]) == 1
    assert common_prefix([range(12), [7, *range(1, 12)]]) == 0
    assert common_prefix([]) == 0


def test_what_is_shared_is_computed_once_and_right(model: LlamaForCausalLM) -> None:
    memory = PrefixMemory()
    head = [i % 50 for i in range(30)]
    seen: list[int] = []
    hook = model.model.embed_tokens.register_forward_hook(lambda _m, args, _out: seen.append(args[0].shape[1]))
    shared, first = shared_prefix(model, [[*head[:20], 1], [*head[:20], 2]], CPU, memory, None)
    assert (shared, seen) == (20, [20])
    shared, second = shared_prefix(model, [[*head, 1], [*head, 2]], CPU, memory, None)
    assert (shared, seen) == (30, [20, 30])  # not after the 20: what was asked before must not change the last digits
    shared, third = shared_prefix(model, [[*head, 3], [*head, 4]], CPU, memory, None)
    assert (shared, seen) == (30, [20, 30])
    assert shared_prefix(model, [[*head[:25], 9]], CPU, memory, None)[0] == 25
    assert shared_prefix(model, [[*head[:25], 9]], CPU, memory, "adapter") == (0, None)  # other weights, other keys
    hook.remove()
    with torch.no_grad():
        cache = model(torch.tensor([head]), use_cache=True).past_key_values
    for (k, v), layer in zip(second, cache.layers, strict=True):
        torch.testing.assert_close(k, layer.keys, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(v, layer.values, atol=1e-5, rtol=1e-5)
    assert third is second and first is not second


def test_short_beginnings_are_not_worth_it(model: LlamaForCausalLM) -> None:
    assert shared_prefix(model, [list(range(15)), list(range(14))], CPU, PrefixMemory(), None) == (0, None)
    assert shared_prefix(model, [], CPU, PrefixMemory(), None) == (0, None)
    assert shared_prefix(model, [list(range(40))], CPU, PrefixMemory(), None) == (0, None)  # one prompt, nothing held


def test_memory_forgets_the_least_recently_used() -> None:
    memory = PrefixMemory(max_bytes=values(20)[0][0].nbytes * 2 * 2)  # room for two prompts of 20 tokens
    one, two, three = [1] * 20, [2] * 20, [3] * 20
    memory.put(None, one, values(20))
    memory.put(None, two, values(20))
    assert memory.longest(None, one)[0] == 20
    memory.put(None, three, values(20))
    assert [memory.longest(None, ids)[0] for ids in (one, two, three)] == [20, 0, 20]
    memory.forget(None)
    assert memory.longest(None, one) == (0, None)


def test_a_longer_prompt_replaces_its_beginning_and_giants_are_not_held() -> None:
    memory = PrefixMemory(max_bytes=100_000)
    memory.put(None, [1] * 20, values(20))
    memory.put(None, [1] * 30, values(30))
    assert len(memory._held) == 1
    assert memory.longest(None, [1] * 25)[0] == 25
    memory.put(None, [2] * 5000, values(5000))
    assert memory.longest(None, [2] * 5000) == (0, None)


def test_rows_are_views() -> None:
    held = values(20)
    ((k, _),) = expanded(held, 18, 3)
    assert k.shape == (3, 1, 18, 4)
    assert k.data_ptr() == held[0][0].data_ptr()
