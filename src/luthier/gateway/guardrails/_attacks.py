"""What the guardrails against attacks share: rules first, and a classifier where the rules are not sure."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.gateway.guardrails._attack_rules import AttackRule, evidence
from luthier.gateway.guardrails._attack_text import readings
from luthier.gateway.guardrails._classifier import Classifier, open_classifier
from luthier.gateway.guardrails._contract import Finding, Models, whole


def prepare(name: str | None, labels: Sequence[str], models: Models) -> Classifier | None:
    """The classifier, when there is one. Raises InputError for labels that it does not have."""
    return open_classifier(models, name, labels) if name is not None else None


def look(
    text: str,
    kind: str,
    chosen: Sequence[AttackRule],
    threshold: float,
    classifier: Classifier | None,
    labels: Sequence[str],
    classifier_threshold: float,
) -> list[Finding]:
    """One finding over the text when the rules or the classifier are sure enough."""
    if not text.strip():
        return []
    score, names = evidence(readings(text), chosen)
    if score >= threshold:
        return whole(kind, text, score, f"rules: {', '.join(names)}")
    if classifier is not None:
        score = classifier.together(text, labels)
        if score >= classifier_threshold:
            return whole(kind, text, score, f"classifier {classifier.engine.info.model}")
    return []
