"""Decide which rows may be used."""
