"""Faults of processes, links, clocks and disks, brought about on purpose; see :mod:`scenarios.faults.cases`."""
