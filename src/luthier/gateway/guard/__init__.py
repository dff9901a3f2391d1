"""Guardrails at work: on questions, on answers, and on trial."""
