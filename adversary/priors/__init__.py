"""Generative priors: loading, sampling, training. Adding one: a folder in diffusers layout, given by path."""
