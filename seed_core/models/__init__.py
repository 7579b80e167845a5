"""The published models: which files belong together, what stands in them, and how they become networks."""
