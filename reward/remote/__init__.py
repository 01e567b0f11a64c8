"""Judges behind HTTP: client, retries, circuit breaker, answer cache."""
