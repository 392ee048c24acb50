"""What a loss does to a model beyond its accuracy: a model and data in, a `Finding` out."""
