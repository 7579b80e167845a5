"""The image tokenizer: pixels to codes, and codes to an embedding."""
