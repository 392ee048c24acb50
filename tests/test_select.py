"""The one place that chooses a backend: what it takes, what it says, and that it never gives in."""

import os
import subprocess
import sys

import pytest
import torch

import losslab
from losslab.experiment.environment import describe_environment
from losslab.logodds import eager, native, select

LOGITS, TARGET = torch.randn(5, 7), torch.randint(7, (5,))
needs_native = pytest.mark.skipif(
    native.unavailable() is not None, reason=str(native.unavailable())
)


@pytest.fixture(autouse=True)
def as_it_was():
    before = select._requested
    yield
    select._requested = before


def chosen(logits=LOGITS, target=TARGET):
    found = select.kernel_for(logits, target)
    return None if found is None else found.name


@needs_native
def test_what_is_taken_when():
    """Oracle: the table in backend_report's words. Break: a slower kernel, or a wrong one."""
    select._requested = "auto"
    assert [chosen(LOGITS.to(d)) for d in (torch.float32, torch.bfloat16, torch.float16)] == [
        "native"
    ] * 3
    assert chosen(LOGITS.double()) == "eager"
    assert chosen(LOGITS.to("meta"), TARGET.to("meta")) == "eager"
    assert torch.func.vmap(lambda z, y: z * 0 + (chosen(z, y) is None))(LOGITS, TARGET).all()
    report = losslab.backend_report()
    assert "cpu float32   native" in report and "cpu float64   eager" in report
    assert select.backend_for("cpu") == "native"
    assert select.backend_for("cpu", torch.float64) == "eager"


def test_eager_by_request():
    """Oracle: the kernel's name. Break: a request that is not heard."""
    losslab.set_backend("eager")
    assert chosen() == "eager" and select.backend_for("cpu") == "eager"
    assert "'eager' was asked for" in losslab.backend_report()
    assert losslab.encouraging_loss(LOGITS, TARGET).isfinite()


@needs_native
@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda: losslab.encouraging_loss(LOGITS.double(), TARGET), "float64"),
        (lambda: losslab.target_log_odds(LOGITS.to("meta"), TARGET.to("meta")), "meta"),
        (
            lambda: torch.func.vmap(losslab.target_log_odds)(LOGITS[:, None], TARGET[:, None]),
            "func",
        ),
    ],
)
def test_a_request_never_falls_back(call, why):
    """Oracle: an error with the reason. Break: another backend taken in silence."""
    losslab.set_backend("native")
    with pytest.raises(losslab.InputError, match=rf"(?s)'native' was asked for.*{why}"):
        call()


@needs_native
def test_native_by_request_when_compiled():
    """Oracle: eager's numbers through the operator; float64 raises there as well."""
    losslab.set_backend("native")
    compiled = torch.compile(losslab.target_log_odds, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(LOGITS, TARGET), eager.statistics(LOGITS, TARGET)[0])
    torch._dynamo.reset()


def test_unknown_and_impossible_requests(monkeypatch):
    """Oracle: the message names what is known, and why not."""
    with pytest.raises(losslab.InputError, match=r"unknown backend 'nativ'.*Did you mean 'native'"):
        losslab.set_backend("nativ")
    monkeypatch.setattr(native, "_native", None)
    monkeypatch.setattr(native, "_reason", "no module")
    with pytest.raises(losslab.InputError, match=r"cannot run here: not built \(no module\)"):
        losslab.set_backend("native")
    assert "not built" in losslab.backend_report()


@pytest.mark.parametrize(("value", "expected"), [("eager", "eager"), ("nativ", "unknown backend")])
def test_environment_variable(value, expected):
    """Oracle: a process of its own. Break: a variable read too late, or a typing error ignored."""
    code = (
        "import torch, losslab\n"
        "try:\n"
        "    losslab.encouraging_loss(torch.zeros(1, 2), torch.tensor([0]))\n"
        "    print(losslab.backend_report())\n"
        "except losslab.InputError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LOSSLAB_BACKEND": value},
        capture_output=True,
        text=True,
        check=True,
    )
    assert expected in done.stdout


def test_runs_record_it():
    """Oracle: the selector. Break: numbers whose origin cannot be told."""
    assert describe_environment("cpu")["backend"] == select.backend_for("cpu")


def test_without_the_native_kernel(monkeypatch):
    """Oracle: the same losses through PyTorch's operations. Break: an import or a call that needs
    the compiled module."""
    expected = losslab.encouraging_loss(LOGITS, TARGET)
    monkeypatch.setattr(select, "_native", False)
    assert chosen() == "eager"
    torch.testing.assert_close(losslab.encouraging_loss(LOGITS, TARGET), expected)
    with pytest.raises(IndexError):
        losslab.encouraging_loss(LOGITS, TARGET + 7)
