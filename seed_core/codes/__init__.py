"""The codes of pictures: the value that travels, and all that is done with it without a model."""
