"""A predictor turns rows into calibrated probabilities, and these into labels."""
