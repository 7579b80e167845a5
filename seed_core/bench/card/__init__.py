"""What only a graphics card can tell: parts in processes of their own, and the goals they decide."""
