"""The closed world of seed-mini: what it shows, what is said of it, and how models are judged by it."""
