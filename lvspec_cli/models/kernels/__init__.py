"""Kernels of our own for GPUs: NF4 products of small batches, fused norms."""
