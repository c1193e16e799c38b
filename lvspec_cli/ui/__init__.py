"""The output in a terminal or a pipe."""
