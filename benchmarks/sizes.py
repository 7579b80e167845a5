"""What each published model takes on the disk, and on a card beside its weights.

    python benchmarks/sizes.py

The working memory is what the nodes ask ComfyUI for. Nothing is downloaded and nothing is timed.
"""

from seed_core.bench import sizes

print("\n".join(sizes.table()))
