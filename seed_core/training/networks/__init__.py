"""What is trained: networks whose ``forward`` returns a loss, and their weights on disk."""
