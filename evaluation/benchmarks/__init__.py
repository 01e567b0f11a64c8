"""Spoken-question benchmarks: suite readers, generation and grading."""
