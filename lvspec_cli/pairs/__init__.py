"""Pairs by name, and their files: in the package, in a folder, in the hub's cache."""
