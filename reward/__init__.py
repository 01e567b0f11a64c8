"""Scores: raters, scorecards, and the servers that decode and rate replies."""
