"""Answers that are given again instead of being computed again."""
