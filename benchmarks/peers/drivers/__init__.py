"""Drivers: one engine each, run in that engine's own environment.

A driver imports the standard library, `driver` and its engine, and nothing else: the environment it
runs in holds nothing else.
"""
