"""Weights & Biases and the progress on the terminal."""
