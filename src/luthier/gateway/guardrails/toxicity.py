"""What a classifier of yours calls harmful: toxic, hateful, sexual, violent, a harmful request, whatever its labels say.

``classifier`` is a stored or served model, or an engine at an address (``openai:NAME``); ``labels`` says which of its labels count, from which
probability on. An answer is read sentence by sentence while it is written.
"""

from __future__ import annotations

from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.gateway.guardrails._classifier import Classifier, open_classifier
from luthier.gateway.guardrails._contract import INPUT, Context, Finding, Models
from luthier.gateway.guardrails._segments import segments

ON = ("input", "output")
DEFAULT_ON = ("input", "output")
ACTIONS = ("block", "mask", "flag", "hand_over")
ROLES = ("user",)
KINDS = ("REMOVED",)


class Config(EntryConfig):
    """``labels``: label and least probability, for example ``{toxic: 0.8}``."""

    classifier: str
    labels: dict[str, float] = Field(min_length=1)


def prepare(config: Config, models: Models) -> Classifier:
    """Open the classifier. Raises InputError for labels that it does not have, or thresholds that are no probabilities."""
    return open_classifier(models, config.classifier, tuple(config.labels))


def slow(config: Config) -> bool:
    """A classifier is a model."""
    return True


def check(text: str, config: Config, context: Context) -> list[Finding]:
    """On input the whole text, in answers the sentences that count."""
    if context.direction != INPUT:
        return scan(text, 0, True, config, context)[0]
    return _found(text, 0, len(text), config, context.state)


def scan(text: str, start: int, final: bool, config: Config, context: Context) -> tuple[list[Finding], int]:
    """Sentences that are complete."""
    complete = segments(text, start, final)
    findings = [each for part in complete for each in _found(text, part.start, part.end, config, context.state)]
    return findings, complete[-1].end if complete else start


def _found(text: str, start: int, end: int, config: Config, classifier: Classifier) -> list[Finding]:
    label, score, over = classifier.strongest(text[start:end], config.labels)
    if over < 0 or not label:
        return []
    return [Finding(label, start, end, score, f"classifier {classifier.engine.info.model}: {label}")]
