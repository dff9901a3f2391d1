"""What chat completions, completions and responses ask of an answer, and how it is said to the engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator

from luthier.core.engine import Constraint, Sampling
from luthier.gateway.api.forms import (
    KINDS,
    GuidedChoice,
    GuidedGrammar,
    GuidedJson,
    GuidedRegex,
    ResponseFormat,
    StructuredOutputs,
)
from luthier.gateway.api.wire import Body, StreamOptions, bad, expect, refuse_type, text_list

MOST_CHOICES = 32
MOST_STOPS = 16
LONGEST_STOP = 1024
MOST_TOKENS = 2**20
MOST_BIASES = 1024
MOST_METADATA = 16


def _stops(value: Any) -> tuple[str, ...]:
    stops = text_list(value) if value != [] else []
    if len(stops) > MOST_STOPS:
        raise bad(f"may hold at most {MOST_STOPS} texts; got {len(stops)}")
    if any(len(stop) > LONGEST_STOP for stop in stops):
        raise bad(f"texts may have at most {LONGEST_STOP} characters")
    return tuple(stops)


def _biases(value: Any) -> tuple[tuple[int, float], ...]:
    expect(value, dict, 'an object from token ids to numbers, like {"50256": -100}', "")
    if len(value) > MOST_BIASES:
        raise bad(f"may hold at most {MOST_BIASES} tokens; got {len(value):,}")
    out = []
    for token, bias in value.items():
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            refuse_type(token, "an object whose names are token ids", "")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            refuse_type(bias, "between -100 and 100", f".{token}")
        out.append((int(token), float(bias)))
    return tuple(sorted(out))


def _metadata(value: Any) -> dict[str, str]:
    expect(value, dict, "an object from names to texts", "")
    if len(value) > MOST_METADATA:
        raise bad(f"may hold at most {MOST_METADATA} names; got {len(value):,}")
    for name, text in value.items():
        if len(name) > 64:
            raise bad(f"names may have at most 64 characters; got {len(name):,}")
        if not isinstance(text, str) or len(text) > 512:
            refuse_type(text, "text of at most 512 characters", f".{name}")
    return dict(value)


def _top_k(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value < 2**31:
        refuse_type(value, "a whole number, 0 or more (0, and vLLM's -1, are off)", "")
    return max(value, 0)


Stops = Annotated[
    tuple[str, ...],
    PlainValidator(_stops),
    WithJsonSchema({
        "anyOf": [
            {"type": "string", "minLength": 1, "maxLength": LONGEST_STOP},
            {"type": "array", "maxItems": MOST_STOPS, "items": {"type": "string", "minLength": 1, "maxLength": LONGEST_STOP}},
        ]
    }),
]  # fmt: skip
Biases = Annotated[
    tuple[tuple[int, float], ...],
    PlainValidator(_biases),
    WithJsonSchema({
        "type": "object", "maxProperties": MOST_BIASES, "propertyNames": {"pattern": "^[0-9]{1,9}$"},
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
    }),
]  # fmt: skip
Metadata = Annotated[
    dict[str, str],
    PlainValidator(_metadata),
    WithJsonSchema({
        "type": "object", "maxProperties": MOST_METADATA, "propertyNames": {"maxLength": 64},
        "additionalProperties": {"type": "string", "maxLength": 512},
    }),
]  # fmt: skip
TopK = Annotated[int, PlainValidator(_top_k), WithJsonSchema({"type": "integer", "minimum": -1, "maximum": 2**31 - 1})]
Count = Annotated[int, Field(ge=1, le=MOST_CHOICES)]
Tokens = Annotated[int, Field(ge=1, le=MOST_TOKENS)]


class Asking(Body):
    """The fields that all of them have.

    ``top_k``, ``min_p``, ``repetition_penalty``, ``beams`` and those of vLLM (``structured_outputs``, ``guided_json`` and its like) are not
    OpenAI's: its client sends them with ``extra_body``. ``metadata.session_id``, or else ``user``, says which conversation a request
    belongs to.
    """

    model: str = Field(max_length=512)
    temperature: float | None = Field(default=None, ge=0.0, le=2.0)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    top_k: TopK = 0
    min_p: float = Field(default=0.0, ge=0.0, lt=1.0)
    repetition_penalty: float = Field(default=1.0, gt=0.0, le=10.0)
    presence_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    frequency_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    logit_bias: Biases = ()
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: Stops = ()
    beams: int = Field(default=1, ge=1, le=16)
    structured_outputs: StructuredOutputs = None
    guided_json: GuidedJson | None = None
    guided_regex: GuidedRegex | None = None
    guided_choice: GuidedChoice | None = None
    guided_grammar: GuidedGrammar | None = None
    stream: bool = False
    user: str | None = Field(default=None, max_length=512)
    metadata: Metadata = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_form(self) -> Asking:
        if len(self.forms()) > 1:
            first, second, *_ = self.forms()
            raise bad(f"and {second} both say what form the answer must have; send one of them", f".{first}")
        return self

    def forms(self) -> dict[str, Constraint]:
        """The constraints that are asked for, by the field that does."""
        fields = ("structured_outputs", *(f"guided_{name}" for name in KINDS))
        return {name: form for name in fields if (form := getattr(self, name)) is not None}

    @property
    def session(self) -> str:
        """Which conversation this belongs to, "" when nobody says."""
        return self.metadata.get("session_id") or self.user or ""

    def sampling(self, **more: Any) -> tuple[Sampling, frozenset[str]]:
        """What is asked, and which of its fields are left to the model. ``more``: what only one endpoint knows."""
        unset = {"temperature"} if self.temperature is None else set()
        if more.get("max_new_tokens") is None:
            more.pop("max_new_tokens", None)
            unset.add("max_new_tokens")
        sampling = Sampling(
            temperature=0.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias,
            seed=self.seed,
            stop=self.stop,
            beams=self.beams,
            constraint=next(iter(self.forms().values()), None),
            **more,
        )
        return sampling, frozenset(unset)

    def field_of(self, parameter: str) -> str:
        """The field of this body that asks for one of ``core.engine.PARAMETERS``."""
        for field, form in self.forms().items():
            if form.kind == parameter:
                return field
        return _FIELDS.get(parameter, parameter)


_FIELDS: Mapping[str, str] = {"images": "messages"}


class Completing(Asking):
    """What chat and text completions have besides: several answers, counts at the end of a stream, OpenAI's form of an answer."""

    max_tokens: Tokens | None = None
    n: Count = 1
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat = None

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise bad("is allowed only with stream: true", ".stream_options")
        return self

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    def forms(self) -> dict[str, Constraint]:
        """The constraints that are asked for, by the field that does."""
        own = {"response_format": self.response_format} if self.response_format is not None else {}
        return own | super().forms()
