"""Documents and pictures to train with."""
