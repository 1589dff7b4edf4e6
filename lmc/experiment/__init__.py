"""Experiment files: a paper's table, the jobs that fill it, and the numbers that were published."""
