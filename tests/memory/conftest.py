"""The tiny pairs, here too."""

from tests.speculation.conftest import pair, pair_folders, pairs

__all__ = ["pair", "pair_folders", "pairs"]
