"""Backbones, adapters, heads and bundles. Needs only torch, transformers and safetensors."""
