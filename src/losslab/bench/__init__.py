"""Time and peak memory of losses beside ``F.cross_entropy`` on this machine.

    settings (cases × contestants) ──► memory, then rounds ──► result ──► document (JSON)

Settings(losses=…, cases=…)   what to measure
run(settings)                 measures; Ctrl-C ends it with what there is
document(result)              everything as JSON: what the table, the figure and ``bench.json`` show
"""

from losslab.bench.cases import Case, parse_linear, parse_size
from losslab.bench.contestants import DEFAULT_LOSSES, RIVALS
from losslab.bench.document import document
from losslab.bench.measure import CaseDone, Preparing, RoundDone, run
from losslab.bench.result import Result, Settings

__all__ = [
    "DEFAULT_LOSSES",
    "RIVALS",
    "Case",
    "CaseDone",
    "Preparing",
    "Result",
    "RoundDone",
    "Settings",
    "document",
    "parse_linear",
    "parse_size",
    "run",
]
