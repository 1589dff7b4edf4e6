"""The stages of an experiment: each a function from a plan and earlier results to an artifact and its numbers."""
