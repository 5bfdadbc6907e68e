"""Triton kernels of quantisation. Each has a twin in torch, and is imported only where it is used."""
