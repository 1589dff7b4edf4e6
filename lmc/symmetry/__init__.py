"""Permutation symmetries: groups of axes that move together, found by tracing, proved by running, applied.

`discover` finds the groups of any network, `verify` proves them, a `Permutation` is an element of them, and `Probe`
observes their units.
"""
