"""The Ray Train driver, its workers, DeepSpeed and checkpoints."""
