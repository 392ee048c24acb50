"""Builds the documentation site: ``python docs/site/build.py [FOLDER]``, by default build/site.

The pages are docs/*.md as they are. What is made here, in FOLDER.source, is a page for each loss
of the catalogue, the reference, and the pages of the files that others link to; the atlas lies
beside them. A warning fails the build. ``--linkcheck`` asks the network whether external links
lead somewhere.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from loss_pages import write_losses
from reference import write_reference
from sphinx.cmd.build import main as sphinx
from stage import ATLAS, PROJECT, stage

from losslab.atlas import write_atlas

HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=PROJECT / "build" / "site")
    parser.add_argument("--linkcheck", action="store_true")
    given = parser.parse_args()
    folder = given.folder.resolve()
    source, doctrees = (folder.with_name(f"{folder.name}.{part}") for part in ("source", "cache"))
    for old in (source, folder):
        shutil.rmtree(old, ignore_errors=True)
    losses = write_losses(source)
    stage(source, losses=losses, reference=write_reference(source))
    builder = "linkcheck" if given.linkcheck else "html"
    strict = [] if given.linkcheck else ["--fail-on-warning", "--nitpicky"]
    places = ["-c", str(HERE), "-d", str(doctrees), str(source), str(folder)]
    status = sphinx(["-b", builder, "-q", "--keep-going", *strict, *places])
    if status == 0:
        if not given.linkcheck:
            write_atlas(folder / ATLAS)
        print(f"Site: {folder / 'index.html'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
