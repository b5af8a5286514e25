"""Profiles of accepted rows, and drift between them."""
