"""Benchmarks of speed and memory; README.md describes them."""
