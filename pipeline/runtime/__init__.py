"""Watchdog, clocks, FLOP counts and Ray metrics."""
