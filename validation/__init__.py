"""Judgement of data: which rows may train or be scored, and why not."""
