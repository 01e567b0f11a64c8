"""Rollouts: generation engines as Ray actors, constrained sampling, and weight updates while they run."""
