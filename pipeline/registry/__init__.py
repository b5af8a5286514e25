"""MLflow versions, the promotion log and the promotion gate."""
