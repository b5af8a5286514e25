"""Config blocks, config loading and its error messages, extension tables."""
