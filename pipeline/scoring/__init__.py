"""Batch scoring: work units, actors, and labels published exactly once."""
