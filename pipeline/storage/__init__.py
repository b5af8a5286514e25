"""Durable files, object stores and leases."""
