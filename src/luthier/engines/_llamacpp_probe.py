"""What a llama.cpp server does with single tokens: how it cuts text, where it stops, what it thinks of each token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.engines._llamacpp_server import LlamaServer

_FORCE = 1e5  # a logit above all others; finite, because llama.cpp adds it


@dataclass(frozen=True)
class LlamaProbe:
    """``server`` with a LoRA file applied (None: the base alone). Safe from several threads."""

    server: LlamaServer
    lora: Path | None

    def tokenize(self, text: str) -> list[int]:
        """The ids that llama.cpp's own tokenizer makes of ``text``, special tokens read as such."""
        body = {"content": text, "add_special": False, "parse_special": True}
        return [int(i) for i in self.server.post("/tokenize", body)["tokens"]]

    def ends_answer(self, before: Sequence[int], tokens: Iterable[int]) -> frozenset[int]:
        """Those of ``tokens`` that end an answer when they are drawn after ``before``."""
        found = set()
        for token in tokens:
            body = {"prompt": list(before), "n_predict": 1, "logit_bias": [[token, _FORCE]]}
            if self._ask(body)["stop_type"] == "eos":
                found.add(token)
        return frozenset(found)

    def token_scores(self, before: Sequence[int], ids: Sequence[int]) -> list[tuple[float | None, int]]:
        """(log-probability, likeliest token in its place) of each of ``ids`` after ``before``.

        The log-probability is None where llama.cpp does not report it: for tokens that are only part of a character.
        """
        out: list[tuple[float | None, int]] = []
        for place, token in enumerate(ids):
            body = {
                "prompt": [*before, *ids[:place]],
                "n_predict": 1,
                "n_probs": 1,
                "logit_bias": [[token, _FORCE]],
            }
            said = self._ask(body).get("completion_probabilities")
            if said:
                out.append((float(said[0]["logprob"]), int(said[0]["top_logprobs"][0]["id"])))
            else:
                out.append((None, -1))
        return out

    def _ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """A greedy draw with ``logit_bias``: probabilities are reported as they were before it."""
        fixed = {"temperature": 0.0, "samplers": ["temperature"], "cache_prompt": True}
        return self.server.post("/completion", body | fixed, self.lora)
