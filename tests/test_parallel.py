"""A vocabulary split over ranks gives the values and gradients of one process.

``parallel_worker.py`` runs every case once in a world of 2 and once in one of 4 processes (gloo, on
the CPU); each test here looks at some of their results. Where a test says "one process", the oracle
is the unsplit losslab loss in float64 on the same inputs; where it can, it is ``tests/oracles``.
"""

import math
import os
import re
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import losslab
import parallel_worker as w
from laws import reference
from laws.settings import ON_SOFTMAX
from losslab import InputError, parallel
from losslab.parallel import ClassSplit
from oracles import logodds

HERE = Path(__file__).parent
TIMEOUT = 180  # seconds for both worlds; they take about 15


class Finished:
    """What the ranks of one world returned."""

    def __init__(self, size: int, folder: Path) -> None:
        self.size = size
        self.logs = [(folder / f"{rank}.log").read_text() for rank in range(size)]
        assert all((folder / f"{rank}.pt").exists() for rank in range(size)), "\n".join(self.logs)
        self.codes = [int(code) for code in (folder / "codes").read_text().split()]
        self.ranks = [torch.load(folder / f"{rank}.pt") for rank in range(size)]
        self.deaths = {
            int(file.stem.removeprefix("death")): file.read_text()
            for file in sorted(folder.glob("death*.txt"))
        }

    def of(self, case: str) -> list:
        return [results[case] for results in self.ranks]

    def same(self, case: str, part: int | None = None) -> Tensor:
        """A result that must be the same to the last bit on every rank."""
        first, *others = (x if part is None else x[part] for x in self.of(case))
        for x in others:
            torch.testing.assert_close(x, first, rtol=0, atol=0, equal_nan=True)
        return first

    def joined(self, case: str, part: int, dim: int = 1) -> Tensor:
        """The shards of a gradient side by side."""
        return torch.cat([x[part] for x in self.of(case)], dim)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the worlds, once they have run, leave their results; no process outlives this."""
    if not hasattr(os, "fork"):
        pytest.skip("the ranks are forked, which this system cannot do")
    folder = tmp_path_factory.mktemp("worlds")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment.pop("RANK", None)
    worker = subprocess.Popen(
        [sys.executable, "-W", "error", str(HERE / "parallel_worker.py"), str(folder)],
        env=environment,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, text = worker.communicate(timeout=TIMEOUT)
        assert worker.returncode == 0, text
    finally:
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)  # the worker and the ranks that it started
            worker.communicate()
    return folder


@pytest.fixture(scope="module")
def two(folder):
    return Finished(2, folder / "2")


@pytest.fixture(scope="module")
def four(folder):
    return Finished(4, folder / "4")


@pytest.fixture(scope="module", params=["two", "four"])
def world(request):
    return request.getfixturevalue(request.param)


def close(got: Tensor, truth: Tensor, case: str, **tolerance: float) -> None:
    tolerance = tolerance or {"rtol": 1e-11, "atol": 1e-12}
    torch.testing.assert_close(
        got, truth, **tolerance, equal_nan=True, msg=lambda text: f"{case}: {text}"
    )


def one_process(loss, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, target)
    value.backward(w.upstream(value.shape).to(value.dtype))
    return value.detach(), leaf.grad


@cache
def unsplit(spec: str, name: str, scale: float) -> tuple[Tensor, Tensor]:
    logits = w.normal(w.ROWS, w.CLASSES, scale=scale)
    return one_process(losslab.loss(spec, **w.options(name)), logits, w.target_for(name, logits))


@pytest.mark.parametrize("name", w.OPTIONS)
def test_options_and_shards(world, name):
    """Oracle: one process. Break: a shard of the wrong width, offsets by even division, ε/C with
    the local C, a mean over ranks, a factor of the number of ranks in the gradient."""
    for shares in w.SIZES[world.size]:
        for spec in w.FEW:
            for scale in (2.0, 25.0) if spec == "encouraging" else (2.0,):
                case = f"{shares}/{name}/{spec}/{scale}"
                value, gradient = unsplit(spec, name, scale)
                close(world.same(case, 0), value, case)
                close(world.joined(case, 1), gradient, case)


@pytest.mark.parametrize("name", ["ignoring", "smoothed", "soft"])
def test_every_loss(two, name):
    """Oracle: the printed ψ in a loop over rows (``tests/oracles``), its gradient by
    Σ t_k ψ'_k (e_k − q⁽ᵏ⁾). Break: any term of the gradient, or a ψ that is treated apart."""
    logits = w.normal(w.ROWS, w.CLASSES)
    target, options = w.target_for(name, logits), w.options(name)
    for setting in ON_SOFTMAX:
        case = f"{setting.spec}/{name}"
        value = torch.as_tensor(reference.value(setting, logits, target, **options))
        slope = reference.gradient(setting, logits, target, w.upstream(value.shape), **options)
        size = 1 + slope.abs().max().item()
        close(two.same(case, 0), value, case)
        close(two.joined(case, 1), slope, case, rtol=1e-10, atol=1e-13 * size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_corner_cases(world, dtype):
    """Oracle: ``oracles.logodds``, rows with infinities and NaN. Break: a NaN lost in a maximum,
    ∞ − ∞ where a rank has no competitor, a gradient where no other class can win."""
    a = world.same(f"corners/{dtype}", 0)
    gradient = world.joined(f"corners/{dtype}", 1)
    for i, (row, y) in enumerate(w.CORNERS):
        truth = logodds.row_log_odds(np.array(row, dtype=np.float64), y)
        slope = torch.as_tensor(logodds.log_odds_gradient(row, y), dtype=dtype)
        case = f"{row}, target {y}"
        close(a[i].double(), torch.tensor(truth).double(), case, rtol=1e-6, atol=1e-6)
        if not slope.isnan().any() and not math.isnan(truth):
            close(gradient[i], slope, case, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_corner_cases_smoothed(world, dtype):
    """Oracle: softplus(−a_k) of ``oracles.logodds``, averaged by hand. Break: ∞ − ∞ in the log-odds
    of all classes."""
    got = world.same(f"smoothed corners/{dtype}")
    for i, (row, y) in enumerate(w.CORNERS):
        a = [logodds.row_log_odds(np.array(row, dtype=np.float64), k) for k in range(len(row))]
        losses = F.softplus(-torch.tensor(a, dtype=torch.float64), threshold=50)
        truth = 0.9 * losses[y] + 0.1 * losses.mean()
        close(got[i].double(), truth, f"{row}, target {y}", rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_corner_slopes_smoothed(world, dtype):
    """Oracle: Σ t_k ψ'_k (e_k − q⁽ᵏ⁾) of ``oracles.logodds`` for ψ = −a, whose slope never fades.
    Break: a gradient for a class that cannot lose, or none for those that cannot win."""
    gradient = world.joined(f"smoothed slopes/{dtype}", 0)
    compared = 0
    for i, (row, y) in enumerate(w.CORNERS):
        shares = np.full(len(row), 0.1 / len(row))
        shares[y] += 0.9
        truth = logodds.soft_target_gradient(row, shares, -np.ones(len(row)))
        a = logodds.all_log_odds(np.array([row]))
        if not np.isnan(a).any() and not np.isnan(truth).any():
            compared += 1
            truth = torch.as_tensor(truth, dtype=dtype)
            close(gradient[i], truth, f"{row}, target {y}", rtol=1e-5, atol=1e-6)
    assert compared == 13


def test_one_class(world):
    """Oracle: by hand. A single class cannot lose: a = +∞ with gradient 0, also on other ranks."""
    assert world.same("one class", 0).tolist() == [math.inf, math.inf]
    assert world.joined("one class", 1).tolist() == [[0.0], [0.0]]


def test_no_rows(world):
    """Oracle: one process: nothing to sum is 0, its mean NaN, or 0 on request."""
    for smoothing in (0.0, 0.1):
        assert world.same(f"empty/{smoothing}/none").shape == (0,)
        assert world.same(f"empty/{smoothing}/sum").item() == 0
        assert math.isnan(world.same(f"empty/{smoothing}/mean").item())
        assert math.isnan(world.same(f"ignored/{smoothing}/False").item())
        assert world.same(f"ignored/{smoothing}/True").item() == 0
        for gradient in world.of(f"ignored/{smoothing}/gradient"):
            assert not gradient.any()
        for gradient in world.of(f"empty linear/{smoothing}"):
            assert not gradient.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_half_types(two, dtype, smoothing):
    """Oracle: the error of eager ``F.cross_entropy`` in the same dtype against float64; ours may
    not be larger. Break: sums, exchanges or gradients in half precision."""
    case = f"half/{dtype}/{smoothing}"
    logits, target = w.normal(64, w.CLASSES, scale=4.0).to(dtype), w.classes(64)

    def cross_entropy(z: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(z, t, reduction="none", label_smoothing=smoothing)

    eager = one_process(cross_entropy, logits, target)
    wide = logits.double().requires_grad_()
    value = cross_entropy(wide, target)
    value.backward(w.upstream(value.shape).to(dtype).double())
    truth = value.detach(), wide.grad
    got = two.same(case, 0), two.joined(case, 1)
    for ours, theirs, exact in zip(got, eager, truth, strict=True):
        assert ours.dtype == dtype
        little = torch.finfo(dtype).eps / 4 * exact.abs().max()
        allowed = (theirs.double() - exact).abs().max() + little
        assert (ours.double() - exact).abs().max() <= allowed


def test_shapes_and_kinds_of_loss(world):
    """Oracle: one process. Break: classes sought elsewhere than at dimension 1, a ψ, a sum of
    losses with different options, or a schedule, that is lost on the way."""
    image = w.normal(2, w.CLASSES, 3, 2)
    for name in w.OPTIONS:
        loss = losslab.loss("encouraging", **w.options(name))
        value, gradient = one_process(loss, image, w.target_for(name, image))
        close(world.same(f"image/{name}", 0), value, name)
        close(world.joined(f"image/{name}", 1), gradient, name)
    for name in ("smoothed", "soft", "weighted mean"):
        target = w.soft_target(1, w.CLASSES)[0] if name == "soft" else torch.tensor(3)
        row = w.normal(w.CLASSES).requires_grad_()
        value = losslab.loss("focal", **w.options(name))(row, target)
        value.backward()
        assert world.same(f"row/{name}", 0).shape == value.shape
        close(world.same(f"row/{name}", 0), value.detach(), name)
        close(world.joined(f"row/{name}", 1, dim=0), row.grad, name)
    logits, target = w.normal(w.ROWS, w.CLASSES), w.classes(w.ROWS)
    different = losslab.loss("focal", weight=w.weights()) - 0.3 * losslab.loss("hinge")
    for name, loss in {
        "psi": losslab.loss("hinge"),
        "spec": losslab.loss("mean_absolute_error"),
        "different": different,
    }.items():
        value, gradient = one_process(loss, logits, target)
        close(world.same(name, 0), value, name)
        close(world.joined(name, 1), gradient, name)
    close(world.same("progress"), losslab.loss("expectation")(logits, target), "progress")


def test_gathered_split(world):
    """Oracle: the sizes themselves. Break: offsets by even division."""
    sizes = w.SIZES[world.size]["uneven"]
    found = world.of("gathered")
    assert found == [(sum(sizes[:i]), n, w.CLASSES) for i, n in enumerate(sizes)]


@cache
def whole_linear(case: str) -> tuple[Tensor, ...]:
    """Value and gradients of the unsplit layer and loss, in float64."""
    keywords, name, dtype = w.LINEAR[case]
    leaves = [x.double().requires_grad_() for x in w.linear_inputs(dtype)]
    logits = F.linear(*leaves) * keywords.get("logit_scale", 1.0)
    if "softcap" in keywords:
        logits = keywords["softcap"] * torch.tanh(logits / keywords["softcap"])
    target, options = w.linear_target(name), w.options(name)
    value = losslab.loss("encouraging", **options)(logits, target)
    if "z_loss" in keywords:
        used = torch.ones(w.ROWS, dtype=torch.bool)
        if not target.is_floating_point():
            used = target != options["ignore_index"]
        squares = keywords["z_loss"] * logits.logsumexp(1).square() * used
        value = value + (squares if value.dim() else squares.sum() / used.sum())
    value.backward(w.upstream(value.shape).to(dtype).double())
    return value.detach(), *(x.grad for x in leaves)


@pytest.mark.parametrize("case", w.LINEAR)
def test_linear(world, case):
    """Oracle: ``F.linear``, scale, softcap, loss and z-loss in one process, in float64. Break: a
    chunk lost, the softcap's slope, a hidden gradient not summed over the ranks (or summed twice),
    a z-loss of ignored rows."""
    dtype = w.LINEAR[case][2]
    eps = torch.finfo(dtype).eps
    near = {"rtol": 1e-10, "atol": 1e-11} if dtype == torch.float64 else {}
    value, hidden, weight, bias = whole_linear(case)
    for shares in w.SIZES[world.size]:
        name = f"linear/{shares}/{case}"
        got = (
            world.same(name, 0),
            world.same(name, 1),
            world.joined(name, 2, dim=0),
            world.joined(name, 3, dim=0),
        )
        for part, truth in zip(got, (value, hidden, weight, bias), strict=True):
            size = truth.abs().max().item()
            assert part.dtype == dtype
            close(part.double(), truth, name, **(near or {"rtol": 0, "atol": 4 * eps * (1 + size)}))


@pytest.mark.parametrize("name", ["hard", "smoothed"])
def test_linear_rows(world, name):
    """Oracle: all logits in float64, one row at a time. Most rows have ties, between classes of one
    rank and of two. Break: a tie won by the later class, facts of ignored rows."""
    hidden, weight = w.tied_inputs()
    logits, target = hidden.double() @ weight.double().T, w.classes(40)
    for shares in w.SIZES[world.size]:
        used, correct, margin, log_odds, logsumexp = (
            world.same(f"linear/{shares}/rows/{name}", i) for i in range(5)
        )
        assert torch.equal(used, target != 2) and 0 < used.sum() < 40
        assert torch.equal(correct, (logits.argmax(1) == target) & used)
        assert (
            correct.any() and ((margin == 0) & correct).any() and ((margin == 0) & ~correct).any()
        )
        for i in used.nonzero().flatten().tolist():
            y, row = int(target[i]), logits[i]
            others = torch.cat([row[:y], row[y + 1 :]])
            assert margin[i].item() == (row[y] - others.max()).item()
            near = {"rtol": 1e-5, "atol": 1e-5}
            close(log_odds[i].double(), row[y] - others.logsumexp(0), "log-odds", **near)
            close(logsumexp[i].double(), row.logsumexp(0), "logsumexp", **near)
        assert all(x[~used].isnan().all() for x in (margin, log_odds, logsumexp))


def test_linear_rows_without_competitor(world):
    """Oracle: by hand. All other classes at −∞: nothing limits margin and log-odds."""
    for found in world.of("linear/no competitor"):
        for facts in found.values():
            used, correct, margin, log_odds, logsumexp = facts
            assert used.all() and correct.all()
            assert margin.tolist() == log_odds.tolist() == [math.inf] * w.ROWS
            assert logsumexp.tolist() == [2.0] * w.ROWS


def test_linear_shapes(world):
    """Oracle: one process. Hidden states of any leading shape, without bias or hidden gradient."""
    hidden, weight, _ = w.linear_inputs(torch.float64)
    weight.requires_grad_()
    logits = hidden[:4] @ weight.T
    value = losslab.loss("focal", reduction="none")(logits, w.classes(2, 2).view(-1))
    value.sum().backward()
    near = {"rtol": 1e-5, "atol": 1e-5}
    close(world.same("linear/states", 0).double(), value.detach().view(2, 2), "states", **near)
    close(world.joined("linear/states", 1, dim=0).double(), weight.grad, "states", **near)
    mixed = world.same("linear/autocast")
    assert mixed.dtype == torch.float32  # losses stay wide under autocast
    close(mixed.double(), value.detach().view(2, 2), "autocast", rtol=0.05, atol=0.05)
    assert not torch.equal(mixed, world.same("linear/states", 0))  # but the product was narrow


def test_split_layer_of_ones_own(world):
    """Oracle: one process. Break: sum_gradient that does not sum, or sums what is summed."""
    hidden, weight, bias = w.linear_inputs(torch.float64)
    hidden.requires_grad_()
    losslab.loss("focal")(F.linear(hidden, weight, bias), w.classes(w.ROWS)).backward()
    close(world.same("split layer"), hidden.grad, "hidden")


def test_compiled(two):
    """Oracle: one process. Break: torch.compile looking into an exchange, whose backward pass it
    then loses; the hidden gradient is this rank's part alone."""
    hidden, weight, _ = (x.requires_grad_() for x in w.linear_inputs(torch.float64))
    (2 * losslab.loss("focal")(3 * hidden @ weight.T, w.classes(w.ROWS))).backward()
    close(two.same("compiled", 0), hidden.grad, "hidden")
    close(two.joined("compiled", 1, dim=0), weight.grad, "weight")
    for text in two.of("compiled whole"):
        assert text.startswith("Unsupported"), text


@pytest.mark.parametrize("width", [w.CLASSES, 10, 5])
def test_dtensor(four, width):
    """Oracle: one process; widths that torch.chunk shares unevenly, or not at all with a rank.
    Break: offsets, a gradient that comes back as another tensor."""
    loss = losslab.loss("encouraging", label_smoothing=0.1)
    leaf = w.normal(w.ROWS, width).requires_grad_()
    loss(leaf, w.classes(w.ROWS) % width).backward()
    for name in ("split", "whole"):
        for alike, gradient in four.of(f"dtensor/{width}/{name}"):
            assert alike
            close(gradient, leaf.grad, name)


def test_dtensor_everywhere(four):
    """Oracle: one process. DTensors as targets, probabilities and the weight of a linear loss."""
    logits, target = w.normal(w.ROWS, w.CLASSES), w.classes(w.ROWS)
    close(four.same("dtensor/log-odds"), losslab.target_log_odds(logits, target), "log-odds")
    soft = losslab.loss("focal")(logits, w.soft_target(w.ROWS, w.CLASSES))
    close(four.same("dtensor/soft"), soft, "soft")
    hidden, weight, _ = w.linear_inputs(torch.float64)
    hidden.requires_grad_(), weight.requires_grad_()
    losslab.loss("focal")(hidden @ weight.T, target).backward()
    for got in four.of("dtensor/linear"):
        close(got[0], hidden.grad, "hidden")
        close(got[1], weight.grad, "weight")


def test_dtensor_that_is_partial(four):
    """Oracle: the sentence. Its local numbers are no logits."""
    for text in four.of("dtensor/partial"):
        assert re.match("InputError: logits must be sharded .* or replicated.*redistribute", text)


def test_dtensor_with_rows_alone(four):
    """Oracle: one process on all rows: 3, 3, 3 and none of them."""
    loss = losslab.loss("focal")(w.normal(w.CLASSES, w.ROWS), w.classes(w.CLASSES) % w.ROWS)
    close(four.same("dtensor/rows alone"), loss, "rows alone")


@pytest.mark.parametrize("classes_too", [True, False])
@pytest.mark.parametrize("case", w.MESH_CASES)
def test_rows_and_classes_on_a_mesh(four, classes_too, case):
    """Oracle: one process on all rows. Break: a mean of the means of unequal parts, a count of
    this rank's rows alone."""
    name, target = w.MESH_CASES[case]
    leaf = w.normal(w.ROWS, w.CLASSES).requires_grad_()
    value = losslab.loss("encouraging", **w.options(name))(leaf, target)
    (2 * value).backward()
    for got, gradient, alike in four.of(f"mesh/{classes_too}/{case}"):
        assert alike
        close(got, value.detach(), case)
        close(gradient, leaf.grad, case)


@pytest.mark.parametrize("classes_too", [True, False])
def test_rows_on_a_mesh_keep_their_losses(four, classes_too):
    """Oracle: one process. With reduction="none" each rank has the losses of its rows: 3 and 2."""
    loss = losslab.loss("focal", reduction="none")
    every = loss(w.normal(w.ROWS, w.CLASSES), w.classes(w.ROWS))
    for rank, got in enumerate(four.of(f"mesh/{classes_too}/none")):
        close(got.detach(), every[:3] if rank < 2 else every[3:], "none")


def test_exchanges_are_small(world):
    """Oracle: the arguments of the collectives. Break: logits gathered, an exchange for every
    chunk, anything exchanged in the backward pass but the hidden gradient."""
    n, d = w.ROWS, w.FEATURES
    for rank in range(world.size):
        forward, backward, made = world.ranks[rank]["traffic/hard"]
        assert (forward, backward) == ([n + 3, 2 * n + 2], [])
        assert made == [n + 3, 2 * n + 2, n * d]
        forward, backward, made = world.ranks[rank]["traffic/smoothed"]
        assert (forward, backward) == ([2 * n + 1, 3 * n + 2, 3 * n], [])
        assert made == [2 * n + 1, 3 * n + 2, 3 * n, n * d]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("second derivative", "RuntimeError: .*first derivatives only.*gathered from all ranks"),
        ("second derivative, smoothed", "RuntimeError: .*first derivatives only"),
        ("own targets/0.0", "InputError: the targets differ between the ranks.*Seed the sampler"),
        ("own targets/0.1", "InputError: the targets differ between the ranks"),
        ("all at 0/0.0", "InputError: the ranks' shares do not make up 9 classes"),
        ("all at 0/0.1", "InputError: the ranks' shares do not make up 9 classes"),
        ("a gap/0.0", "InputError: the ranks' shares do not make up 10 classes.*ClassSplit.gather"),
        ("a gap/0.1", "InputError: the ranks' shares do not make up 10 classes"),
        ("out of range", r"IndexError: Target \d+ is out of bounds.*\[0, 8\]"),
    ],
)
def test_mistakes_are_told_on_every_rank(world, case, message):
    """Oracle: the sentence. An error on one rank alone would leave the others waiting."""
    for text in world.of(case):
        assert isinstance(text, str) and re.match(message, text, re.S), text


def test_process_outside_the_group(world):
    """Oracle: the sentence, on all ranks but the group's only one."""
    for case in ("not in the group", "not in the group, even"):
        first, *others = world.of(case)
        assert first == 3
        assert all("does not belong to the process group" in text for text in others)


def test_a_rank_that_dies(world):
    """Oracle: exit codes and texts. Break: a rank that waits for ever, or that fails with the
    transport's words alone."""
    assert world.codes == [3 if rank == 1 else 0 for rank in range(world.size)], world.logs
    assert sorted(world.deaths) == [rank for rank in range(world.size) if rank != 1]
    for rank, text in world.deaths.items():
        start = f"RuntimeError: losslab.parallel: rank {rank} of {world.size} could not sum up"
        assert text.startswith(start) and "another rank has died" in text, text
        assert "start the job again" in text


def test_documented_training(two):
    """Oracle: the same script in this one process. Break: any gradient of the split layer, or of
    the layers below it; or the script."""
    scope: dict = {}
    exec(compile(w.page(), "parallel.md", "exec"), scope)
    assert len(scope["losses"]) == 40 and scope["losses"][-1] < scope["losses"][0] - 1
    for losses in two.of("training"):
        assert losses == pytest.approx(scope["losses"], abs=2e-5)


WHOLE = ClassSplit.even(w.CLASSES)  # this process alone


def test_one_process_alone():
    """Oracle: the unsplit loss. Without torch.distributed one process holds all classes."""
    assert (WHOLE.start, WHOLE.size, WHOLE.total, WHOLE.ranks) == (0, w.CLASSES, w.CLASSES, 1)
    assert ClassSplit.gather(w.CLASSES) == WHOLE
    logits, target = w.normal(w.ROWS, w.CLASSES), w.classes(w.ROWS)
    value = parallel.split_loss(logits, target, "focal", WHOLE, label_smoothing=0.1)
    close(value, losslab.loss("focal", label_smoothing=0.1)(logits, target), "alone")


def test_psi_with_a_parameter():
    """Oracle: the unsplit loss. A trained parameter of ψ gets its gradient, or an error says that
    it would not."""
    temperature = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    logits, target = w.normal(w.ROWS, w.CLASSES), w.classes(w.ROWS)

    def psi(a: Tensor) -> Tensor:
        return F.softplus(-a * temperature)

    parallel.split_loss(logits, target, psi, WHOLE).backward()
    got, temperature.grad = temperature.grad, None
    losslab.OddsLoss(psi)(logits, target).backward()
    close(got, temperature.grad, "temperature")
    with pytest.raises(InputError, match="differentiate the loss by the logits only"):
        parallel.split_loss(logits, target, psi, WHOLE, label_smoothing=0.1)


@pytest.mark.parametrize(
    "spec",
    [
        "mean_squared_error",
        "maximum_probability_cross_entropy",
        "complement_entropy",
        "one_vs_rest(cross_entropy)",
        "complement_objective(cross_entropy)",
        "cross_entropy + mean_squared_error",
        "logit_adjustment(cross_entropy, counts=[1, 2, 3, 4, 5, 6, 7, 8, 9])",
    ],
)
def test_losses_that_cannot_be_split(spec):
    """Oracle: the sentence, before anything is exchanged. Break: a wrong number instead."""
    loss = losslab.loss(spec)
    logits, target = w.normal(w.ROWS, w.CLASSES), w.classes(w.ROWS)
    for attempt in (
        lambda: parallel.split_loss(logits, target, loss, WHOLE),
        lambda: parallel.SplitLoss(loss, WHOLE),
        lambda: parallel.linear_loss(logits, logits.T.contiguous(), target, loss, split=WHOLE),
    ):
        with pytest.raises(InputError, match="cannot be computed from split classes"):
            attempt()


def _bad_inputs():
    z, y = w.normal(w.ROWS, w.CLASSES), w.classes(w.ROWS)
    hidden, weight, bias = w.linear_inputs(torch.float64)
    t = w.soft_target(w.ROWS, w.CLASSES)
    return {
        "no split": (lambda: parallel.split_loss(z, y), r"Give split=ClassSplit.gather\(9\)"),
        "width": (
            lambda: parallel.split_loss(z[:, :5], y, "focal", WHOLE),
            "this rank's 9 classes",
        ),
        "integers": (lambda: parallel.split_loss(z.long(), y, "focal", WHOLE), "floating point"),
        "rows": (lambda: parallel.split_loss(z, y[:3], "focal", WHOLE), "target"),
        "soft": (lambda: parallel.split_loss(z, t[:, :5], "focal", WHOLE), "split as the logits"),
        "soft, ignoring": (
            lambda: parallel.split_loss(z, t, "focal", WHOLE, ignore_index=1),
            "class-index targets only",
        ),
        "target learns": (
            lambda: parallel.split_loss(z, t.clone().requires_grad_(), "focal", WHOLE),
            "Detach it",
        ),
        "weight": (
            lambda: parallel.split_loss(z, y, "focal", WHOLE, weight=torch.ones(5)),
            r"one number a class of all ranks, shape \(9,\)",
        ),
        "module": (lambda: parallel.split_loss(z, y, torch.nn.CrossEntropyLoss(), WHOLE), "spec"),
        "options twice": (
            lambda: parallel.split_loss(z, y, losslab.loss("focal"), WHOLE, reduction="sum"),
            "has its own options",
        ),
        "binary": (
            lambda: parallel.split_loss(z, y, losslab.BinaryOddsLoss(w.hinge), WHOLE),
            "cannot be computed from split classes",
        ),
        "split": (lambda: ClassSplit(3, 7, 9), "start=3, size=7, total=9"),
        "hidden": (lambda: parallel.linear_loss(hidden.T, weight, y, split=WHOLE), "input must be"),
        "bias": (
            lambda: parallel.linear_loss(hidden, weight, y, split=WHOLE, linear_bias=bias[:2]),
            "linear_bias",
        ),
        "dtypes": (
            lambda: parallel.linear_loss(hidden.float(), weight, y, split=WHOLE),
            "one dtype",
        ),
        "softcap": (
            lambda: parallel.linear_loss(hidden, weight, y, split=WHOLE, softcap=-1.0),
            "softcap must be",
        ),
        "rows of soft targets": (
            lambda: parallel.linear_loss(hidden, weight, t, split=WHOLE, return_rows=True),
            "return_rows",
        ),
    }


@pytest.mark.parametrize("case", _bad_inputs())
def test_bad_input(case):
    """Oracle: what the message must name."""
    attempt, message = _bad_inputs()[case]
    with pytest.raises(InputError, match=message):
        attempt()


def peak(run) -> int:
    """The most bytes that were allocated at a time, by the allocator's own counts."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        run()
    live = most = 0
    for event in trace.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    return most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_peak_memory(dtype):
    """Oracle: the allocator. Above the logits there is their gradient and little else; a linear
    loss holds an eighth of them above its gradients. Break: an (N, C) temporary."""
    n, c, d = 1024, 16000, 16
    split, target = ClassSplit.even(c), torch.randint(c, (n,), generator=w.generator(0))
    logits = w.normal(n, c).to(dtype).requires_grad_()
    size = n * c * dtype.itemsize
    spent = peak(lambda: parallel.split_loss(logits, target, "encouraging", split).backward())
    assert spent <= 1.05 * size
    hidden, weight = (w.normal(k, d).to(dtype).requires_grad_() for k in (n, c))
    spent = peak(
        lambda: parallel.linear_loss(hidden, weight, target, "focal", split=split).backward()
    )
    assert spent - (n + c) * d * dtype.itemsize <= 0.2 * size
