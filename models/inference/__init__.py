"""Run a trained model at the lowest cost: merged weights, cached prefixes, one pass for all tasks."""
