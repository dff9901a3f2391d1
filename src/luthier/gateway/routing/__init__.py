"""Catalogue: how a route chooses what answers."""
