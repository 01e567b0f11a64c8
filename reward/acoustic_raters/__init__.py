"""Raters that measure, for any family: words heard, signal quality, pitch, tempo, and likeness to a voice."""
