"""Tasks of objects to find in pictures, and the network for them."""
