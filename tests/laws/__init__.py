"""Laws that hold for the whole catalogue, driven by one list of settings.

settings    every ψ of the catalogue with several parameter settings, each with its oracle
reference   values and gradients of whole losses in float64, from tests/oracles alone
"""
