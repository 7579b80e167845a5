"""The stages of a recipe: each builds its networks, trains them and writes them."""
