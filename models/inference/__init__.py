"""Run a trained model at the least cost: merged weights, cached prefixes, one pass for all tasks."""
