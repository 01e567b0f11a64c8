"""`duet ablate`: comparison of the paper's arms (method §9).

`arms` defines arms and plans runs. `runner` runs missing ones. `metrics` and `results` read finished runs.
`bootstrap` computes intervals. `claims` compares with the paper. `page` and `plot` write the results.
"""
