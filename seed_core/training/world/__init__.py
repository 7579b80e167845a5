"""The closed world of seed-mini: its scenes, their pictures and words, and their judge."""
