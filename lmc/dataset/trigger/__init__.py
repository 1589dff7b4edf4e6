"""Triggers: marks in training images that make a network answer with a class of the attacker's choice (backdoors)."""
