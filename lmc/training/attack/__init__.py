"""Attacks: how images are changed within a budget so that a network fails on them, in training and in evaluation."""
