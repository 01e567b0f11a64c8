"""The page to see and hear a run: what its directory says, in one HTML file that needs nothing else."""
