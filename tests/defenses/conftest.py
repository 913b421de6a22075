"""Fixtures of tiny models."""

from tiny import tiny_target

__all__ = ["tiny_target"]
