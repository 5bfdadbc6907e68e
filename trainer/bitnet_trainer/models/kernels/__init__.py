"""Triton kernels of what models compute besides; imported only where one of them runs."""
