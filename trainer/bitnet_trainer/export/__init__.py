"""Writing a trained model in formats that other programs load."""
