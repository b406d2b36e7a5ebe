"""Peers: alpage and other engines on the same requests, in turn; docs/benchmarks.md tells how."""
