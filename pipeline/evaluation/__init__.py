"""Metrics with intervals, calibration fits, comparisons, behavioral tests, and the report."""
