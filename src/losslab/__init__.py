"""losslab: classification losses that replace ``cross_entropy`` by one line.

    criterion = losslab.EncouragingLoss()          # was: torch.nn.CrossEntropyLoss()

Every loss is ψ(a), a function of the true class's log-odds a = logit p(y|x). The index below is
what there is; ``losslab --help`` starts the laboratory that tells whether it helps.
"""

from losslab.errors import InputError
from losslab.linear import LinearLoss, LinearRows, linear_loss
from losslab.logodds import all_log_odds, target_log_odds
from losslab.logodds.select import backend_report, set_backend
from losslab.losses import api as _api
from losslab.losses.api import *  # noqa: F403  one function and one module a catalogue row
from losslab.losses.catalog import CATALOG
from losslab.losses.functional import binary_odds_loss, odds_loss
from losslab.losses.margins import (
    AdditiveMargin,
    AdjustedLoss,
    CosineLinear,
    LargeMarginLinear,
    LDAMMargin,
    LogitAdjustment,
    ReweightedLoss,
    class_weights,
)
from losslab.losses.modules import (
    BinaryOddsLoss,
    ComplementObjectiveLoss,
    OddsLoss,
    OneVsRestLoss,
    SmoothedLoss,
    SumLoss,
)
from losslab.losses.rowwise import (
    MaxMahalanobisCenterLoss,
    mahalanobis_centers,
    max_mahalanobis_center_loss,
)
from losslab.losses.spec import loss
from losslab.schedules import deferred, deferred_weights, phases, ramp, switch

__version__ = "0.1.0"

__all__ = [
    "CATALOG",
    "AdditiveMargin",
    "AdjustedLoss",
    "BinaryOddsLoss",
    "ComplementObjectiveLoss",
    "CosineLinear",
    "InputError",
    "LDAMMargin",
    "LinearLoss",
    "LinearRows",
    "LargeMarginLinear",
    "LogitAdjustment",
    "ReweightedLoss",
    "MaxMahalanobisCenterLoss",
    "OddsLoss",
    "OneVsRestLoss",
    "SmoothedLoss",
    "SumLoss",
    "all_log_odds",
    "backend_report",
    "binary_odds_loss",
    "class_weights",
    "deferred",
    "deferred_weights",
    "linear_loss",
    "loss",
    "mahalanobis_centers",
    "max_mahalanobis_center_loss",
    "odds_loss",
    "phases",
    "ramp",
    "set_backend",
    "switch",
    "target_log_odds",
    *_api.__all__,
]
