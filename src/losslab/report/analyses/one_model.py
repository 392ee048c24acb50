"""What analyses found of one model of the user's own: findings.json and a page beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from losslab.analysis.finding import Finding
from losslab.experiment.records import jsonable, write_atomically, write_json
from losslab.report.analyses.sections import section_of_one
from losslab.report.numbers import NONE
from losslab.report.style import styles
from losslab.report.template import fill, swatches


def write_findings(found: Mapping[str, Finding], file: Path, out: Path) -> Path:
    """Writes ``OUT/findings.json`` and ``OUT/report.html``; returns the page.

    The same findings give the same bytes.

    Args:
        found: By request, such as ``"ood(out=fashion-mnist)"``.
        file: The file of the model's weights; its name stands for the model.
        out: The folder to write to; made if it is not there.

    Example:
        >>> write_findings({"margins": margins(subject)}, Path("mine.pt"), out)  # doctest: +SKIP
        PosixPath('my-analysis/report.html')
    """
    content: dict[str, Any] = {
        request: jsonable(
            {"values": finding.values, "details": finding.details, "flags": finding.flags}
        )
        for request, finding in found.items()
    }
    page = Path(out) / "report.html"
    looks = styles([Path(file).name])
    analyses = [
        section_of_one(request, **one, name=f"analysis-{place}", looks=looks)
        for place, (request, one) in enumerate(content.items(), 1)
    ]
    text = fill(
        "model.html",
        title=f"{Path(file).name}: what was measured",
        analyses=analyses,
        swatches=swatches(looks),
        baseline=None,
        control_labels=(),
        dash=NONE,
    )
    write_json(Path(out) / "findings.json", {"model": str(file), "findings": content})
    write_atomically(page, text.encode())
    return page
