"""Benchmarks: scripts that measure what the documentation claims; results are kept beside them."""
