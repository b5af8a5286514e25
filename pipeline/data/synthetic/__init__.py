"""Synthetic ads marketplace with known relevance."""
