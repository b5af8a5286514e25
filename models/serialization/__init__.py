"""Write and read models: bundles, exports to other tools, checkpoints of the official MTL-LoRA code."""
