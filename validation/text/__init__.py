"""Bytes, words, scripts and hashes of texts."""
