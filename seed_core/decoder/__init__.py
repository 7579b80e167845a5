"""The unCLIP decoder: an image embedding to a picture."""
