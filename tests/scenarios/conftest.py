"""Fixtures of tiny models."""

from tiny import flow_prior, pictures, stable_prior, tiny_lab, tiny_target

__all__ = ["flow_prior", "pictures", "stable_prior", "tiny_lab", "tiny_target"]
