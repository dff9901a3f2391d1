"""Endpoints, and the OpenAI wire format that they read and write."""
