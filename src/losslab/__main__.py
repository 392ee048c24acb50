"""``python -m losslab`` is ``losslab``."""

from losslab.cli import main

main()
