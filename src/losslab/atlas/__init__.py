"""The atlas: one offline page in which the losses can be played with.

The page has no formulas of its own: it runs the steps that ``losslab.losses.trace`` reads off
each ψ.
"""

from losslab.atlas.page import write_atlas

__all__ = ["write_atlas"]
