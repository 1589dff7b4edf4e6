"""Paths between two networks: straight lines, and curves whose inner points are trained."""
