"""The trainer of bitnet-operator: turns a pretrained language model into a 1.58-bit one, in PyTorch.

Nothing is imported here, so that a part of it can be used without paying for the rest.
"""
