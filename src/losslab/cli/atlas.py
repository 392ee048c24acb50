"""``losslab atlas``: one offline page in which the losses can be played with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def atlas(
    specs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SPEC]...", help="Losses to show first; see losslab losses"),
    ] = None,
    run: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of a comparison whose log-odds the page offers; repeatable"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where to write the page")] = Path("losslab-atlas.html"),
    serve: Annotated[
        bool, typer.Option("--serve", help="Also serve it on this machine, until Ctrl-C.")
    ] = False,
    port: Annotated[int, typer.Option(help="Port of --serve; 0 takes a free one")] = 8765,
) -> None:
    """Write a page with sliders for every loss: its curves, gradients, identities and Python line.

    The page opens offline in any browser. It runs the library's own functions, has room for a ψ
    that you type, and shows which examples of a real run each loss would attend to.

    Examples:

        losslab atlas
        losslab atlas cross_entropy 'encouraging(log_end=0.5)' 'mixed(focus=0.3)' --serve
        losslab atlas --run losslab-runs/digits-1a2b3c4d --out digits.html
    """
    from losslab.atlas import write_atlas
    from losslab.atlas.page import SHOWN
    from losslab.errors import InputError
    from losslab.experiment.own_loss import is_own_loss

    own = next(filter(is_own_loss, specs or ()), None)
    if own is not None:
        raise InputError(
            f"Expected losses that the page knows, but got {own}, from a file. Press Type your own "
            f"ψ on the page, or look at its curves with: losslab explain {own}"
        )
    if out.suffix not in (".html", ".htm"):
        raise InputError(f"--out must end in .html; got {out}.")
    if specs and len(specs) > 6:
        raise InputError(f"The page shows six losses at a time; got {len(specs)}.")
    page = write_atlas(out, specs or SHOWN, run or ())
    typer.echo(f"Atlas: {page}")
    if serve:
        _serve(page, port)


def _serve(page: Path, port: int) -> None:
    """The page at http://127.0.0.1:PORT/, for this machine alone."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    from losslab.errors import InputError

    content = page.read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path.split("?")[0] in ("/", f"/{page.name}")
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(content if found else b"Not found: the atlas is at /")

        def log_message(self, *_: object) -> None:
            pass

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"Cannot serve on port {port} ({error}); give another with --port, or 0 for a free one."
        ) from None
    with server:
        typer.echo(f"Serving http://127.0.0.1:{server.server_port}/ until Ctrl-C.")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("")
