"""Data validation: the data gate, leakage and drift."""
