"""What a run shows: its directory, metrics, console, plots, report."""
