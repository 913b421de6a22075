"""Fixtures of tiny models."""

from tiny import pictures, tiny_target

__all__ = ["pictures", "tiny_target"]
