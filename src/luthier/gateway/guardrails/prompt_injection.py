"""Prompt injection: texts that try to replace a model's instructions or to get at them, from users and in tool results and documents.

Rules in English, Chinese and the best-known phrases of German, French and Spanish, on what the text says behind look-alike letters, invisible
characters, spaced or encoded words; with ``classifier`` also a model (``examples/gateway/attacks.yaml`` tunes one). In texts of the role
``tool`` also what is written for a model rather than for a person. Perez and Ribeiro 2022 (arXiv:2211.09527), Greshake et al. 2023
(arXiv:2302.12173).
"""

from __future__ import annotations

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.gateway.guardrails import _attacks
from luthier.gateway.guardrails._attack_rules import rules
from luthier.gateway.guardrails._classifier import Classifier
from luthier.gateway.guardrails._contract import Context, Finding, Models

ON = ("input",)
ACTIONS = ("block", "flag", "hand_over")
ROLES = ("user", "tool")


class Config(EntryConfig):
    """``threshold``: how sure the rules must be. ``classifier``: a model whose ``labels`` (together at least ``classifier_threshold``) mean an attack.
    ``tools``: also read the results of tools."""

    threshold: float = Field(0.5, gt=0, le=1)
    classifier: str | None = None
    classifier_threshold: float = Field(0.5, gt=0, le=1)
    labels: tuple[str, ...] = Field(("injection",), min_length=1)
    tools: bool = True


def prepare(config: Config, models: Models) -> Classifier | None:
    """Open the classifier. Raises InputError for labels that it does not have."""
    return _attacks.prepare(config.classifier, config.labels, models)


def slow(config: Config) -> bool:
    """A classifier is a model."""
    return config.classifier is not None


def check(text: str, config: Config, context: Context) -> list[Finding]:
    """One finding over the whole text, or none."""
    if context.role == "tool" and not config.tools:
        return []
    indirect = context.role == "tool"
    chosen = rules("injection", "indirect") if indirect else rules("injection")
    return _attacks.look(
        text, "indirect_injection" if indirect else "injection", chosen, config.threshold,
        context.state, config.labels, config.classifier_threshold,
    )  # fmt: skip
