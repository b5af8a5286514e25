"""Atomic file writes, object stores and leases."""
