"""Jailbreaks: texts that talk a model out of its rules, by roles, modes, games and promises.

Rules in English and Chinese on what the text says behind its disguises; with ``classifier`` also a model (``examples/gateway/attacks.yaml`` tunes
one). Shen et al. 2024, "Do Anything Now" (arXiv:2308.03825).
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
ROLES = ("user",)


class Config(EntryConfig):
    """``threshold``: how sure the rules must be. ``classifier``: a model whose ``labels`` (together at least ``classifier_threshold``) mean an attack."""

    threshold: float = Field(0.5, gt=0, le=1)
    classifier: str | None = None
    classifier_threshold: float = Field(0.5, gt=0, le=1)
    labels: tuple[str, ...] = Field(("jailbreak",), min_length=1)


def prepare(config: Config, models: Models) -> Classifier | None:
    """Open the classifier. Raises InputError for labels that it does not have."""
    return _attacks.prepare(config.classifier, config.labels, models)


def slow(config: Config) -> bool:
    """A classifier is a model."""
    return config.classifier is not None


def check(text: str, config: Config, context: Context) -> list[Finding]:
    """One finding over the whole text, or none."""
    return _attacks.look(
        text,
        "jailbreak",
        rules("jailbreak"),
        config.threshold,
        context.state,
        config.labels,
        config.classifier_threshold,
    )
