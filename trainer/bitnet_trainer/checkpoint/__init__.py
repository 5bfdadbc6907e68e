"""Checkpoints that either are whole or do not exist, and going on from them.

Nothing is imported here: the launcher asks for the stores alone, and torch's own checkpoints, which the ranks
write and read, take seconds to import.
"""
