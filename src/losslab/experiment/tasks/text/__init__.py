"""Tasks of texts: reviews, GLUE, translation, language models, and the networks for them."""
