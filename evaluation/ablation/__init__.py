"""`duet ablate`: the paper's arms side by side (method §9).

`arms` says what the arms are and plans their runs, `running` runs what is missing, `measures` and `results` read what
came of it, `bootstrap` says how sure it is, `verdicts` sets it beside the paper, `page`, `tables` and `plot` show it.
"""
