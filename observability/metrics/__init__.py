"""What a Prometheus server sees of a run.

`iterations` and `state` are the table of all metrics, read when an iteration has finished and at every scrape;
`collecting` keeps their values, `endpoint` serves them and says where everything else can be scraped, `page` writes
docs/metrics.md.
"""
