"""Encoding of texts as token ids, the cache of encoded rows, and batches."""
