"""Tensors: backbones, adapters, heads, bundles. Needs torch, transformers and safetensors, nothing else of
the stack.
"""
