"""Benchmarks, ablations, diagnosis, judge agreement."""
