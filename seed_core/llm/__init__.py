"""SEED-LLaMA: conversations of text and pictures, token by token."""
