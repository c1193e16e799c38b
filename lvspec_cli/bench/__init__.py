"""Measurements of the real thing."""
