"""Errors, files, secrets: no domain."""
