"""Checks that a user runs: of the machine (``doctor``) and of a pair (``models verify``)."""
