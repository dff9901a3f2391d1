from __future__ import annotations

import numpy as np
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from luthier.models.score import Row, score_rows
from luthier.models.token_scores import token_scores

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.5,
}
CPU = torch.device("cpu")
ROWS = [([1, 5, 9], [2, 7]), ([3], [4, 5, 6, 7, 8]), ([1, 2, 3, 4, 5, 6], [9])]


def test_each_token_is_transformers_log_softmax_whatever_the_batch() -> None:
    torch.manual_seed(0)
    for model in (LlamaForCausalLM(LlamaConfig(**SHAPE)), Gemma2ForCausalLM(Gemma2Config(**SHAPE))):
        model.eval()
        told: list[int] = []
        together = token_scores(model, ROWS, CPU, told=told.append)
        one_by_one = token_scores(model, ROWS, CPU, max_batch_tokens=1)
        assert told[-1] == 3
        for (before, ids), scores, alone in zip(ROWS, together, one_by_one, strict=True):
            with torch.no_grad():
                out = model(torch.tensor([[*before, *ids]])).logits[0].double().log_softmax(-1)
            reads = out[len(before) - 1 : -1]
            wanted = [float(reads[i, token]) for i, token in enumerate(ids)]
            np.testing.assert_allclose(scores.log_probs, wanted, atol=2e-5)
            np.testing.assert_allclose(alone.log_probs, wanted, atol=2e-5)
            assert scores.likeliest.tolist() == reads.argmax(-1).tolist()


def test_their_sum_is_the_score() -> None:
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()
    sums = [row[0] for row in score_rows(model, [Row(before, [ids]) for before, ids in ROWS], CPU)]
    found = [float(scores.log_probs.sum()) for scores in token_scores(model, ROWS, CPU)]
    values = [getattr(each, "logprob", each) for each in sums]
    np.testing.assert_allclose(found, values, atol=1e-4)
