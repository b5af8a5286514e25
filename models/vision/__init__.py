"""MTLoRA as its paper uses it, on a vision transformer."""
