"""Models at the edge: loading, families, and one model with its cache."""
