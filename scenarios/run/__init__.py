"""Scenarios: experiments written down as YAML, computed row by row, reported on one page."""
