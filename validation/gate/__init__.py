"""Data gate: decides which rows may be used."""
