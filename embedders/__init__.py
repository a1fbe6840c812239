"""Encoders: images in, vectors out."""
