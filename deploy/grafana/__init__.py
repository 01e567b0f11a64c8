"""Dashboards, made from `panels`."""
