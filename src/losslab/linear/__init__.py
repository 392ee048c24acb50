"""The last layer and its loss together, without ever holding the (N, V) logits.

Logits are made for some rows at a time, in one buffer that then takes their gradient. There are
three ways through (``sweeps.py``); which is taken changes time and memory, never the result.
docs/linear.md tells them apart.
"""

from losslab.linear.api import LinearLoss, linear_loss
from losslab.linear.rows import LinearRows

__all__ = ["LinearLoss", "LinearRows", "linear_loss"]
