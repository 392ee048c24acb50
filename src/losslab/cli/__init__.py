"""The command line: one file a verb. ``main`` turns a user's mistake into one line and a status.

Exit status: 0 done; 2 bad input; 3 done, but runs diverged; 130 interrupted, finished runs kept.
Anything else is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import sys

_LAB = {"jinja2", "matplotlib", "numpy", "pandas", "PIL", "pyarrow", "rich", "scipy", "sklearn"}


def main() -> None:
    """Run the command line and exit."""
    from losslab.errors import InputError

    try:
        from losslab.cli.app import app

        app()
    except InputError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _LAB | {"typer"}:
            raise
        _fail(f"{error.name} is not installed. Install the laboratory: pip install 'losslab[lab]'")
    except BrokenPipeError:  # the reader of a pipe, such as `head`, left
        sys.stderr.close()


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
