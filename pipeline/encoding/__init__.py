"""Text to token ids, cached, and token ids to batches."""
