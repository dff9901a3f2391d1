"""The parts of encoder-decoders against transformers' own forward, for the architectures that are taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    MT5Config,
    T5Config,
    UMT5Config,
)

from luthier.models.attention import register
from luthier.models.packed import Row
from luthier.models.seq2seq import pair_log_probs, read, score_pairs

CPU = torch.device("cpu")
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
BART |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 64}
KINDS: dict[str, Any] = {
    "t5": lambda: T5Config(vocab_size=60, **T5),
    "t5 v1.1": lambda: T5Config(vocab_size=60, feed_forward_proj="gated-gelu", tie_word_embeddings=False, **T5),
    "mt5": lambda: MT5Config(vocab_size=60, **T5),
    "umt5": lambda: UMT5Config(vocab_size=60, **T5),
    "bart": lambda: BartConfig(vocab_size=60, **BART),
}
ROWS = [
    Row([5, 9, 30, 7, 1], [[8, 1], [12, 13, 14, 1], [40]]),
    Row([11, 1], [[8, 1], [22, 1]]),
    Row([17, 18, 19, 20, 21, 22, 23, 1], [[33, 34, 35, 36, 1]]),
]


@pytest.fixture(params=sorted(KINDS))
def module(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    found = AutoModelForSeq2SeqLM.from_config(KINDS[request.param]()).eval()
    found.set_attn_implementation(register())
    if hasattr(found, "final_logits_bias"):
        found.final_logits_bias.normal_()
    return found


def expected(module: Any, source: list[int], target: list[int], opening: list[int]) -> torch.Tensor:
    """Sum of log p of ``target`` by one plain forward."""
    ids = torch.tensor([source])
    out = module(input_ids=ids, decoder_input_ids=torch.tensor([[*opening, *target[:-1]]])).logits[0]
    said = out[len(opening) - 1 :].log_softmax(-1)
    return said[torch.arange(len(target)), torch.tensor(target)].sum()


@pytest.mark.parametrize("opening", [[0], [2, 3]])
def test_log_likelihoods_and_their_gradients_are_those_of_plain_forwards(module: Any, opening: list[int]) -> None:
    ours = pair_log_probs(module, ROWS, opening, 0, CPU)
    theirs = [torch.stack([expected(module, list(r.prompt), list(c), opening) for c in r.continuations]) for r in ROWS]
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    weights = list(module.parameters())
    first = torch.autograd.grad(torch.cat(ours).square().sum(), weights, allow_unused=True)
    second = torch.autograd.grad(torch.cat(theirs).square().sum(), weights, allow_unused=True)
    for one, other in zip(first, second, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("budget", [1, 20, 1000])
def test_scores_do_not_depend_on_the_batch(module: Any, budget: int) -> None:
    found = {
        i: scores for batch in score_pairs(module, ROWS, [0], 0, CPU, max_batch_tokens=budget) for i, scores in batch
    }
    for number, row in enumerate(ROWS):
        wanted = [float(expected(module, list(row.prompt), list(c), [0])) for c in row.continuations]
        assert [each.logprob for each in found[number]] == pytest.approx(wanted, abs=1e-4)


def test_greedy_says_whether_every_token_was_the_likeliest(module: Any) -> None:
    with torch.no_grad():
        said = [0]
        for _ in range(3):
            ids, before = torch.tensor([ROWS[0].prompt]), torch.tensor([said])
            said.append(int(module(input_ids=ids, decoder_input_ids=before).logits[0, -1].argmax()))
    best = said[1:]
    other = [*best[:2], (best[2] + 1) % 60]
    ((_, scores),) = next(score_pairs(module, [Row(ROWS[0].prompt, [best, other, best[:1]])], [0], 0, CPU))
    assert [each.greedy for each in scores] == [True, False, True]


def test_the_opening_is_read_once_a_prompt(module: Any) -> None:
    placed = read(module, ROWS, [0], 0, CPU)
    tails = sum(len(c) - 1 for row in ROWS for c in row.continuations)
    assert len(placed.hidden) == len(ROWS) + tails
    assert placed.where.tolist() == sorted(placed.where.tolist())


def test_an_untied_head_is_loaded_as_it_was_saved(tmp_path: Path, tiny_t5_path: Path, home: Path) -> None:
    """T5 v1.1 and FLAN-T5 have a head of their own."""
    from luthier.models.load import load_model
    from luthier.models.pull import pull
    from luthier.store.database import open_store

    torch.manual_seed(0)
    config = T5Config(vocab_size=384, feed_forward_proj="gated-gelu", tie_word_embeddings=False, **T5)
    module = AutoModelForSeq2SeqLM.from_config(config).eval()
    module.lm_head.weight = torch.nn.Parameter(torch.randn(384, 32))
    module.save_pretrained(str(tmp_path / "flan"))
    AutoTokenizer.from_pretrained(str(tiny_t5_path)).save_pretrained(str(tmp_path / "flan"))
    record = pull(f"file:{tmp_path / 'flan'}", alias="flan")
    assert record.architecture == "encoder-decoder"
    loaded = load_model(open_store(), record, dtype="fp32", device="cpu")
    assert torch.equal(loaded.module.lm_head.weight, module.lm_head.weight)
    assert not torch.equal(loaded.module.shared.weight, loaded.module.lm_head.weight)
    assert loaded.context_length == 512
    ids = torch.tensor([[5, 9, 30, 7, 1]])
    with torch.no_grad():
        ours = pair_log_probs(loaded.module, [Row([5, 9, 30, 7, 1], [[8, 9]])], [0], 0, CPU)
        theirs = module(input_ids=ids, decoder_input_ids=torch.tensor([[0, 8]])).logits[0].log_softmax(-1)
    assert float(ours[0]) == pytest.approx(float(theirs[0, 8] + theirs[1, 9]), abs=1e-4)
