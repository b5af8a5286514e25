"""Metrics with intervals, calibration fits, comparisons, behavioural tests, and the report."""
