"""Prometheus metrics of a run.

`training` and `live` define the metrics: read when an iteration has finished, and at every scrape. `registry` lists
them, `collector` keeps their values, `server` serves them and lists the scrape targets, `docs` writes docs/metrics.md.
"""
