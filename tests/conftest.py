"""What all tests share."""

import os
import shutil
import signal
import sys

import pytest
import torch

from losslab import cli
from losslab.logodds import native

# Started in the background (``nohup``, some CI systems) a process ignores Ctrl-C, and so would the
# processes that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def level(request):
    """One instruction set of the native kernel after another, as far as this processor has them."""
    if native.unavailable() is not None:
        pytest.skip(str(native.unavailable()))
    best = native._native.level()
    if native._native.level(request.param) != request.param:
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    native._native.level(best)


@pytest.fixture
def one_thread():
    """Sums in one order, and no second thread woken for a small model's sake."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Run ``losslab …`` in this process, in an empty folder: (status, stdout, stderr)."""
    assert cli.__file__.startswith(os.environ.get("LOSSLAB_EXPECTED_AT", ""))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["losslab", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        finally:
            signal.signal(signal.SIGTERM, before)
        out, err = capsys.readouterr()
        return status, out, err

    return run


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, which pages are looked at in; skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=[*QUIET])
        yield opened
        opened.close()
