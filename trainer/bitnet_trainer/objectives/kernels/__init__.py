"""Passes over the logits of a chunk of tokens: each in plain PyTorch, and as a Triton kernel for CUDA."""
