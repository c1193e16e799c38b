"""Batches: many videos to captions, in an order, each once, with what is done kept."""
