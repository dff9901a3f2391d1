"""Conversations that are rendered here and sent to an endpoint as token ids: tools, forms and tokens are read here too."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from luthier.core.engine import Constraint, Sampling
from luthier.core.errors import UnsupportedError
from luthier.core.message import Prompt
from luthier.data.call_form import call_form
from luthier.data.token_bytes import bytes_of_tokens
from luthier.engines._openai_dialect import Dialect
from luthier.engines._openai_wire import Answer, sampling_fields
from luthier.engines._tools import ToolText, offered, prompt_tools, wanted_form

if TYPE_CHECKING:
    from luthier.data.render import Renderer


@dataclass(frozen=True)
class Rendered:
    """A prompt's ids, and how it is answered."""

    renderer: Renderer
    ids: tuple[int, ...]
    sampling: Sampling

    @staticmethod
    def of(renderer: Renderer, prompt: Prompt, sampling: Sampling) -> Rendered:
        """Render ``prompt`` with the tools that are offered. Raises as ``Renderer.prompt_ids``."""
        return Rendered(renderer, tuple(renderer.prompt_ids(prompt, prompt_tools(sampling))), sampling)

    def fields(self, dialect: Dialect) -> tuple[dict[str, Any], dict[str, Any]]:
        """OpenAI's fields and others. Raises UnsupportedError when a call must come and the endpoint follows no grammar."""
        constraint = wanted_form(self.renderer, self.sampling)
        if constraint is not None and constraint is not self.sampling.constraint:
            from luthier.models.gbnf import grammar

            constraint = Constraint("grammar", grammar(constraint))
        arguments, extra = sampling_fields(replace(self.sampling, constraint=constraint), dialect, chat=False)
        if (
            self.sampling.logprobs is not None and dialect.own_defaults
        ):  # vLLM: tokens as ids, whose bytes are known here
            extra["return_tokens_as_token_ids"] = True
        if offered(self.sampling) and call_form(self.renderer).tokens:
            if not dialect.own_defaults:
                raise UnsupportedError(
                    "tools: this model marks calls by special tokens, which the endpoint leaves out of its text",
                    hint="serve it with vLLM, or without the engine option tokenizer",
                    parameters=("tools",),
                )
            extra["skip_special_tokens"] = False
        return arguments, extra

    def answer(self, start: float) -> Answer:
        """What reads a choice."""
        tools = ToolText(self.renderer, self.sampling) if offered(self.sampling) else None
        known = bytes_of_tokens(self.renderer) if self.sampling.logprobs is not None else ()
        return Answer(self.ids, False, tools, known, start)
