"""Tasks of images to classify, and the networks for them."""
