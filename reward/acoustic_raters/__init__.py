"""Raters that measure audio, for any family: word error, signal quality, pitch, tempo and voice similarity."""
