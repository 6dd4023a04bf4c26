"""Phantoms, a robot annotator, and benchmarks against peers."""
