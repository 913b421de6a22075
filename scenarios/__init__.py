"""Experiments, their reports, and the command line."""
