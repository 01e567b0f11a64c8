"""Faults done to a real run, by a seed, and whether it healed: `make chaos`, and in small in the tests."""
