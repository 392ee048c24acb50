"""Tasks of tables: a column to predict from the others."""
