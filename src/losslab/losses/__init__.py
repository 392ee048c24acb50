"""Losses: every ψ, its catalogue row, and the functions and modules made from it."""
