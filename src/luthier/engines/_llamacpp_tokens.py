"""What llama.cpp can be asked of single tokens: how likely one is, and to draw them one at a time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.engine import Sampling, TokenLogprob
from luthier.data.token_bytes import bytes_of_tokens
from luthier.engines._llamacpp_server import LlamaServer
from luthier.engines._llamacpp_wire import Drawn, read_entry, refuse_mixed_penalties, request_body

if TYPE_CHECKING:
    from luthier.data.render import Renderer

_FORCE = 1e5  # a logit above all others; finite, because llama.cpp adds it


@dataclass(frozen=True)
class Tokens:
    """Tokens of ``renderer``'s vocabulary on ``server``, with one LoRA file applied or none. Safe from several threads."""

    server: LlamaServer
    lora: Path | None
    renderer: Renderer

    @cached_property
    def vocabulary(self) -> list[bytes]:
        """The bytes of each token, by id."""
        return bytes_of_tokens(self.renderer)

    def score(self, before: Sequence[int], token: int) -> tuple[float, bool]:
        """The log-probability of ``token`` after ``before``, and whether it is the likeliest."""
        value, listed = self._listed(before, token, 1)
        return value, listed[0]["id"] == token

    def weigh(self, before: Sequence[int], token: int, alternatives: int) -> TokenLogprob:
        """``token`` after ``before``, beside so many of the likeliest."""
        value, listed = self._listed(before, token, max(1, alternatives))
        top = tuple((bytes(each["bytes"]), float(each["logprob"])) for each in listed[:alternatives])
        return TokenLogprob(self.vocabulary[token], value, top)

    def _listed(self, before: Sequence[int], token: int, count: int) -> tuple[float, list[dict[str, Any]]]:
        """The log-probability of ``token``, and the likeliest tokens: forced to be drawn, it is reported as it was before any sampling."""
        body: dict[str, Any] = {
            "prompt": list(before),
            "n_predict": 1,
            "temperature": 0.0,
            "samplers": ["temperature"],
            "logit_bias": [[token, _FORCE]],
            "n_probs": count,
            "cache_prompt": True,
        }
        said = self._ask(body).get("completion_probabilities")
        if said:
            return float(said[0]["logprob"]), said[0]["top_logprobs"]
        # a token that is only part of a character is not reported: draw another one and look for this one among all
        body |= {"n_probs": len(self.renderer.tokenizer), "logit_bias": [[self._whole_token, _FORCE]]}
        listed = self._ask(body)["completion_probabilities"][0]["top_logprobs"]
        return next(float(each["logprob"]) for each in listed if each["id"] == token), listed

    @cached_property
    def _whole_token(self) -> int:
        """Any token that is whole characters."""
        return self.renderer.continuation_ids("a", ends_turn=False)[0]

    def steps(
        self, ids: Sequence[int], sampling: Sampling, context_length: int, note_cached: Callable[[int], None]
    ) -> Iterator[Drawn]:
        """The tokens of an answer to ``ids``, each drawn in a request of its own: llama.cpp's presence penalty counts the prompt's tokens
        too, so the logit bias holds the penalties instead. ``note_cached`` hears how many tokens of the prompt were known."""
        refuse_mixed_penalties(sampling)
        chance, drawn = random.Random(sampling.seed), list[int]()
        step = replace(sampling, presence_penalty=0.0, frequency_penalty=0.0, max_new_tokens=1, stop=(), tools=())
        for place in range(min(sampling.max_new_tokens, context_length - len(ids))):
            bias = dict(sampling.logit_bias)
            for token in set(drawn):
                lost = sampling.presence_penalty + sampling.frequency_penalty * drawn.count(token)
                bias[token] = bias.get(token, 0.0) - lost
            body = request_body([*ids, *drawn], replace(step, seed=chance.getrandbits(31)), context_length)
            body["logit_bias"] = [[token, value] for token, value in bias.items()]
            answer = self._ask(body)
            if not place:
                note_cached(int(answer["timings/cache_n"]))
            token = int(answer["tokens"][0])
            said: TokenLogprob | None = None
            if sampling.logprobs is not None and token not in self.renderer.stop_ids:
                entries = [e for e in answer.get("completion_probabilities") or () if e["id"] == token]
                if entries:
                    said = read_entry(entries[0], sampling.logprobs)
                else:  # part of a character
                    said = self.weigh([*ids, *drawn], token, sampling.logprobs)
            yield token, said
            if answer["stop_type"] == "eos":
                return
            drawn.append(token)

    def _ask(self, body: dict[str, Any]) -> dict[str, Any]:
        return self.server.post("/completion", body, self.lora)
