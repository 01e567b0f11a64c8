"""Judges behind an interface of HTTP: client, retries, circuit breaker, cache."""
