"""Tasks of graphs to classify, and the network for them."""
