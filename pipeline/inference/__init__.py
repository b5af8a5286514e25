"""Predictors: rows to calibrated probabilities, and these to labels."""
