"""Attacks that learn the inverse from pairs of images and features, without F1's weights."""
