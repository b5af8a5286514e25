"""Rows to scores: everything between a parquet row and a published label, without a command line."""
