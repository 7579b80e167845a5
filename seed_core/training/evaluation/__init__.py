"""Measuring a seed-mini on its closed world."""
