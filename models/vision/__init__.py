"""MTLoRA on a vision transformer, as in its paper."""
