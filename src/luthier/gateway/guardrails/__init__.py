"""Catalogue of guardrails: what is looked for in what goes to a model and in what comes back. One file is one guardrail; see ``_contract``."""
