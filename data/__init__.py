"""Datasets on disk, sampling order, preference pairs, `duet prepare`."""
