"""The server: models over the OpenAI wire format, every answer traced, feedback taken back in."""
