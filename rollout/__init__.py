"""Rollouts: vLLM engines as Ray actors, constrained sampling, and weights that arrive while they live."""
