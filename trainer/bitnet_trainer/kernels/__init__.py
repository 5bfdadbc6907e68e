"""What Triton kernels of several parts have in common. Imported only where they are used."""
