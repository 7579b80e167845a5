"""Files on disk: weights of any kind, small files beside them, folders of models, and writing all of it."""
