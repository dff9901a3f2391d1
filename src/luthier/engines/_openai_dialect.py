"""What an OpenAI-compatible endpoint understands beyond the common core, and how it says so.

vLLM's own fields are those of its OpenAI-compatible server (``structured_outputs`` since version 0.12, ``guided_*`` before); it ignores
fields that it does not know, so they must not be guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import httpx2
import openai

from luthier.core.engine import PARAMETERS, Constraint, ConstraintKind
from luthier.core.errors import InputError, UnsupportedError, did_you_mean

Structured = Literal["openai", "vllm", "guided", "none"]
Maker = Literal["openai", "vllm", "vllm-before-0.12", "luthier"]

COMMON = frozenset({"presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "tools", "images"})
WIDER = COMMON | {"top_k", "min_p", "repetition_penalty"}
_KINDS = frozenset(get_args(ConstraintKind))
FORMS = {"openai": frozenset({"json", "json_schema"}), "vllm": _KINDS, "guided": _KINDS, "none": frozenset[str]()}
_STRUCTURED: dict[Maker, Structured] = {
    "openai": "openai",
    "luthier": "vllm",
    "vllm": "vllm",
    "vllm-before-0.12": "guided",
}


@dataclass(frozen=True)
class Dialect:
    """``parameters`` the endpoint honours; ``structured`` is how a constraint is written. ``own_defaults``: what a request leaves out
    is not off, but what the model's files say (vLLM), so everything is sent."""

    parameters: frozenset[str]
    structured: Structured
    own_defaults: bool = False


def choose(maker: Maker, accepts: Iterable[str] | None, structured: Structured | None) -> Dialect:
    """The dialect of an endpoint by ``maker``, unless the operator says otherwise. Raises InputError for what cannot be said."""
    form = structured or _STRUCTURED[maker]
    wider = maker != "openai"
    if accepts is None:
        named = (WIDER if wider else COMMON) | FORMS[form] | ({"beams"} if maker == "luthier" else set())
    else:
        named = frozenset(accepts)
        for name in sorted(named - set(PARAMETERS)):
            raise InputError(f"accepts: {name!r} is not a parameter. {did_you_mean(name, PARAMETERS)}")
        unsayable = sorted((named & _KINDS) - FORMS[form]) + sorted(named & {"beams"} if maker != "luthier" else ())
        if unsayable:
            raise InputError(
                f"accepts: {', '.join(unsayable)} cannot be written for this endpoint (structured: {form})",
                hint="structured: vllm writes json, json_schema, regex, choice and grammar",
            )
    return Dialect(named, form, own_defaults=maker.startswith("vllm"))


def recognise(client: openai.OpenAI, model: str, timeout_s: float) -> Maker | None:
    """Who made the endpoint, by the owner of its models; None when it does not answer (now)."""
    try:
        listed = list(client.with_options(timeout=timeout_s, max_retries=0).models.list())
        owners = {str(each.owned_by) for each in listed if each.id == model} or {str(each.owned_by) for each in listed}
    except (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError, httpx2.HTTPError):
        return None
    except (openai.OpenAIError, ValueError, TypeError, AttributeError):  # it answers, but has no such list
        return "openai"
    if "vllm" in owners:
        version = _version(client, timeout_s)
        return "vllm-before-0.12" if version is not None and version < (0, 12) else "vllm"
    return "luthier" if "luthier" in owners else "openai"


def _version(client: openai.OpenAI, timeout_s: float) -> tuple[int, int] | None:
    try:
        said = httpx2.get(root(client) + "/version", timeout=timeout_s).json()
        found = re.match(r"(\d+)\.(\d+)", str(said["version"]))
    except (httpx2.HTTPError, ValueError, KeyError, TypeError):
        return None
    return (int(found[1]), int(found[2])) if found else None


def root(client: openai.OpenAI) -> str:
    """The endpoint's address without ``/v1``."""
    return str(client.base_url).rstrip("/").removesuffix("/v1")


def form_fields(constraint: Constraint, structured: Structured, *, chat: bool) -> dict[str, Any]:
    """The fields of a request that ask for an answer of this form. Raises UnsupportedError for what has no field."""
    kind = constraint.kind
    value: Any = json.loads(constraint.value) if kind in ("json_schema", "choice") else constraint.value
    if kind not in FORMS[structured]:
        raise UnsupportedError(f"a constraint {kind} cannot be written for this endpoint (structured: {structured})")
    if structured == "vllm":
        return {"structured_outputs": {"json_object": True} if kind == "json" else {_VLLM.get(kind, kind): value}}
    if structured == "guided":
        if kind == "json":
            return {"response_format": {"type": "json_object"}}
        return {f"guided_{_VLLM.get(kind, kind)}": value}
    if not chat:
        raise UnsupportedError("this endpoint constrains conversations only; raw text was given")
    if kind == "json":
        return {"response_format": {"type": "json_object"}}
    schema = {"name": "answer", "strict": True, "schema": value}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


_VLLM = {"json_schema": "json"}
