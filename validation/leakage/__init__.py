"""Leakage: test queries that training has seen, and words that give a label away."""
