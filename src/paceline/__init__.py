"""Paceline: LLM inference built around multi-token-prediction speculative decoding,
with text that does not depend on it."""

__version__ = "0.1.0"
