"""Measurements of speed and quality, on real clips and models."""
