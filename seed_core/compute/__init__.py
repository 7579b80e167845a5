"""Arithmetic: layers in several precisions, CUDA graphs, threads, random numbers."""
