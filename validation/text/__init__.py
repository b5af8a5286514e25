"""Bytes, words, scripts and hashes of text columns."""
