"""Kernels of our own for GPUs: products of few rows by packed weights, layers and towers in few kernels."""
