"""A synthetic ads marketplace with known relevance."""
