"""Shared by all pools of Ray actors: waiting with a deadline. Knows nothing of speech."""
