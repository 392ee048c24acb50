"""Does an installed losslab work? Run by the interpreter of a clean environment, outside pytest:

    python tests/smoke.py --native yes     # the wheel with the C++ kernel; no: the pure wheel

It needs torch and losslab alone (the laboratory's libraries may be there or not) and ends with
status 0, or with the traceback of the first check that fails. Oracles: definitions in float64, and
``F.cross_entropy``. docs/release.md says when to run it, and what it has run on.
"""

import argparse
import importlib.util
import platform
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

with warnings.catch_warnings():
    warnings.simplefilter("error")
    import losslab

ROWS, CLASSES = 37, 7
DATA = ["py.typed", "losses/api.pyi", "report/report.html", "atlas/page.js", "recipes/ba-t4.toml"]
COMPILES = (2, 5)  # older compilers stop at a loss's Python
LABORATORY = ["typer", "rich", "numpy", "scipy", "sklearn", "pandas", "matplotlib"]


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Float32 logits of confident and unsure rows, class indices, a random upstream gradient."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(-1, 1, ROWS)[:, None]
    logits = scale * torch.randn(ROWS, CLASSES, generator=generator)
    target = torch.randint(CLASSES, (ROWS,), generator=generator)
    return logits, target, torch.randn(ROWS, generator=generator)


def log_odds(logits: Tensor) -> Tensor:
    """Of every class, by the definition: z_k − log Σ_{j≠k} exp z_j."""
    own = torch.eye(logits.shape[1], dtype=torch.bool)
    return logits - logits[:, None].masked_fill(own, -torch.inf).logsumexp(2)


def run(loss, logits: Tensor, target: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each row, and the logits' gradient under a random upstream gradient."""
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, target)
    (value * upstream.to(value)).sum().backward()
    return value.detach(), leaf.grad


def agree(found, wanted, tolerance: float = 2e-5) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=tolerance, atol=tolerance)


def soft(target: Tensor) -> Tensor:
    """Rows of probabilities: nine tenths on the label, the rest at random."""
    noise = torch.rand(ROWS, CLASSES, generator=torch.Generator().manual_seed(1))
    return 0.9 * F.one_hot(target, CLASSES) + 0.1 * noise / noise.sum(1, keepdim=True)


def check_package(native: bool) -> None:
    """Version, data files, and which kernel there is."""
    root = Path(losslab.__file__).parent
    assert losslab.__version__ == version("losslab")
    for name in DATA:
        assert (root / name).is_file(), f"{name} is not in the package"
    built = importlib.util.find_spec("losslab.logodds._native") is not None
    assert built == native, f"the C++ kernel is {'' if built else 'not '}built"
    losslab.set_backend("native" if native else "eager")
    losslab.set_backend("auto")


def check_every_loss() -> None:
    """Value and gradient of each, for class indices and for probabilities, beside float64."""
    logits, target, upstream = batch()
    for name in losslab.CATALOG:
        loss = losslab.loss(name, reduction="none")
        if loss.psi is None:  # a loss of all probabilities: itself in float64
            wanted = run(loss, logits.double(), target, upstream)
            agree(run(loss, logits, target, upstream), wanted)
            continue

        def by_definition(z: Tensor, t: Tensor, psi=loss.psi) -> Tensor:
            return (t.double() * psi(log_odds(z))).sum(1)

        for given in (target, soft(target)):
            shares = given if given.is_floating_point() else F.one_hot(target, CLASSES)
            wanted = run(by_definition, logits.double(), shares, upstream)
            agree(run(loss, logits, given, upstream), wanted)


def check_half_precision() -> None:
    """bfloat16 logits: as float32 logits of the same numbers, up to bfloat16's rounding."""
    logits, target, upstream = batch()
    logits = logits.bfloat16()
    for name in ("cross_entropy", "encouraging"):
        loss = losslab.loss(name, reduction="none")
        agree(run(loss, logits, target, upstream), run(loss, logits.float(), target, upstream), 0.1)


def check_options() -> None:
    """weight, ignore_index, label_smoothing and means beside PyTorch's."""
    logits, target, _ = batch()
    target[::5] = -100
    weight = torch.rand(CLASSES, generator=torch.Generator().manual_seed(2)) + 0.1
    for options in ({}, {"weight": weight}, {"label_smoothing": 0.1}, {"reduction": "sum"}):
        ours = losslab.loss("cross_entropy", **options)
        theirs = torch.nn.CrossEntropyLoss(**options)
        one = torch.tensor(1.3)
        agree(run(ours, logits, target, one), run(theirs, logits, target, one))


def check_specs() -> None:
    """Sums, schedules, wrappers and a ψ of one's own, from strings and back."""
    logits, target, upstream = batch()
    for spec in ("mixed(focus=0.3)", "cross_entropy + 0.5*focal(gamma=1)", "one_vs_rest(hinge)"):
        loss = losslab.loss(spec, reduction="none")
        again = losslab.loss(loss.spec, reduction="none")
        agree(run(again, logits, target, upstream), run(loss, logits, target, upstream), 0)
    moving = losslab.loss("mixed(focus=ramp(0, 0.4))")
    moving.set_progress(0.5)
    agree([moving(logits, target)], [losslab.loss("mixed(focus=0.2)")(logits, target)])
    mine = losslab.OddsLoss(F.softplus, reduction="none")
    agree([mine(logits, target)], [F.softplus(log_odds(logits.double()))[range(ROWS), target]])
    try:
        losslab.loss("cross_entropie")
    except losslab.InputError as error:
        assert "cross_entropy" in str(error)
    else:
        raise AssertionError("an unknown loss was taken")


def check_linear_loss() -> None:
    """The last layer with its loss, beside the two apart."""
    logits, target, _ = batch()
    weight = torch.randn(11, CLASSES, generator=torch.Generator().manual_seed(3))
    one = torch.tensor(0.7)
    target = target % 11
    agree(
        run(lambda h, t: losslab.linear_loss(h, weight, t, "encouraging"), logits, target, one),
        run(lambda h, t: losslab.encouraging_loss(h @ weight.T, t), logits, target, one),
    )


def check_transforms() -> None:
    """Second derivatives and vmap, beside float64 by the definition."""
    logits, target, _ = batch()
    logits, target = logits[:3].double(), target[:3]

    def by_definition(z: Tensor) -> Tensor:
        return -F.logsigmoid(log_odds(z)[range(3), target]).mean()

    ours = torch.autograd.functional.hessian(lambda z: losslab.cross_entropy(z, target), logits)
    agree([ours], [torch.autograd.functional.hessian(by_definition, logits)])
    each = torch.func.vmap(losslab.cross_entropy)(logits[:, None], target[:, None])
    agree([each], [F.cross_entropy(logits, target, reduction="none")])


def check_compile() -> None:
    """One graph without a break, value and gradient as eager. The backend needs no compiler."""
    logits, target, upstream = batch()
    for name in ("cross_entropy", "encouraging", "mixed(focus=ramp(0, 0.3))"):
        loss = losslab.loss(name, reduction="none")
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        agree(run(compiled, logits, target, upstream), run(loss, logits, target, upstream))


def check_command_line() -> None:
    """The laboratory's help, or one line that says what to install."""
    done = subprocess.run(
        [sys.executable, "-m", "losslab", "--help"], capture_output=True, text=True, check=False
    )
    if all(importlib.util.find_spec(name) for name in LABORATORY):
        assert done.returncode == 0 and "compare" in done.stdout, done.stderr
    else:
        assert done.returncode == 2, (done.returncode, done.stderr)
        assert "pip install 'losslab[lab]'" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


def compiles() -> bool:
    return tuple(int(part) for part in torch.__version__.split(".")[:2]) >= COMPILES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--native", choices=["yes", "no"], required=True)
    native = parser.parse_args().native == "yes"
    print(f"losslab {losslab.__version__} at {Path(losslab.__file__).parent}")
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.platform()}")
    checks = [check_every_loss, check_half_precision, check_options, check_specs, check_linear_loss]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_package(native)
        for check in (*checks, check_transforms, check_compile, check_command_line):
            if check is check_compile and not compiles():
                print("  compile: not checked, PyTorch is too old")
                continue
            check()
            print(f"  {check.__name__.removeprefix('check_').replace('_', ' ')}: ok", flush=True)
    print("all checks passed")


if __name__ == "__main__":
    main()
