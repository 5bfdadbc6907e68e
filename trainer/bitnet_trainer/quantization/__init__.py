"""Quantised layers and their warmup."""
