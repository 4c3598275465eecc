"""Arithmetic on batches of images."""
