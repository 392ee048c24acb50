"""The metrics as torchmetrics classes, against the functions on all examples at once."""

from __future__ import annotations

import importlib
import itertools
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics import MetricCollection

import losslab
from losslab import metrics
from losslab.errors import InputError
from losslab.metrics import accumulating, ood

PAIRS = {  # class and options, and what it must be equal to on all the examples
    "Accuracy": ({}, metrics.accuracy),
    "BalancedAccuracy": ({}, metrics.balanced_accuracy),
    "NLL": ({}, metrics.nll),
    "Brier": ({}, metrics.brier),
    "BrierDecomposition": ({}, metrics.brier_decomposition),
    "BrierDecomposition mass": (
        {"bins": 5, "binning": "mass"},
        lambda z, y: metrics.brier_decomposition(z, y, 5, binning="mass"),
    ),
    "CalibrationError": ({}, metrics.ece),
    "CalibrationError max": (
        {"bins": 4, "binning": "mass", "norm": "max"},
        lambda z, y: metrics.calibration_error(z, y, 4, binning="mass", norm="max"),
    ),
    "ClasswiseECE": ({}, metrics.classwise_ece),
    "ClasswiseECE mass": (
        {"bins": 4, "binning": "mass", "per_class": True},
        lambda z, y: metrics.classwise_ece(z, y, 4, binning="mass", per_class=True),
    ),
    "Reliability": ({}, metrics.reliability),
    "Reliability mass": (
        {"bins": 3, "binning": "mass"},
        lambda z, y: metrics.reliability(z, y, 3, binning="mass"),
    ),
    "Margin": ({}, lambda z, y: metrics.margins(z, y).logits),
    "LogOdds": (
        {"levels": (0.1, 0.9)},
        lambda z, y: metrics.distribution(metrics.log_odds(z, y), (0.1, 0.9)),
    ),
    "Energies": ({}, metrics.conditional_energies),
    "ClassEnergies": ({}, metrics.class_energies),
    "GradientShares": (
        {"loss": "encouraging", "edges": (0, 0.3, 1)},
        lambda z, y: metrics.gradient_shares(
            metrics.log_odds(z, y), "encouraging", edges=(0, 0.3, 1)
        ),
    ),
    "TemperatureScaling": ({}, metrics.fit_temperature),
    "OODDetection": ({}, lambda z, y: ood.detect(z[y != 0], z[y == 0])),
}


def sample(seed: int = 0, rows: int = 40, classes: int = 4):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (rows,), generator=generator)
    logits = 2 * torch.randn(rows, classes, generator=generator)
    logits[torch.arange(rows), target] += 1
    return logits, target


def make(name: str):
    return getattr(accumulating, name.split()[0])(**PAIRS[name][0])


def take(metric, logits, target) -> None:
    """One batch; for OOD detection class 0 stands for the outside."""
    is_ood = isinstance(metric, accumulating.OODDetection)
    metric.update(logits, target == 0 if is_ood else target)


def same(found, expected) -> None:
    """Equal to the last bit, NaN where NaN is expected, field by field."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        found, expected = tuple(found.values()), tuple(expected.values())
    if isinstance(expected, tuple):
        assert type(found) is type(expected) and len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
        return
    found, expected = (torch.as_tensor(value, dtype=torch.float64) for value in (found, expected))
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def batches(logits, target, cuts):
    at = [0, *sorted(cuts), len(target)]
    return [(logits[i:j], target[i:j]) for i, j in itertools.pairwise(at) if j > i]


def test_every_class_is_in_the_table():
    """Guards the tests below: a class without a row would be under none of them."""
    assert {name.split()[0] for name in PAIRS} == set(accumulating.__all__)


@pytest.mark.parametrize("name", PAIRS)
@given(seed=st.integers(0, 20), cuts=st.sets(st.integers(1, 39), max_size=6))
@settings(max_examples=8, deadline=None)
def test_whatever_the_batches_it_is_the_function_of_all_examples(name, seed, cuts):
    """Oracle: the function on the whole. Break: an average of averages, a batch lost or doubled,
    quantiles of quantiles."""
    logits, target = sample(seed)
    metric = make(name)
    for batch in batches(logits, target, cuts):
        take(metric, *batch)
    same(metric.compute(), PAIRS[name][1](logits, target))


@pytest.mark.parametrize("name", PAIRS)
def test_batches_of_a_single_class(name):
    """Oracle: the function on the whole, with the examples sorted by class and class 2 missing."""
    logits, target = sample(1)
    logits, target = logits[target != 2], target[target != 2]
    order = target.argsort(stable=True)
    logits, target = logits[order], target[order]
    metric = make(name)
    for label in target.unique():
        take(metric, logits[target == label], target[target == label])
    same(metric.compute(), PAIRS[name][1](logits, target))


@pytest.mark.parametrize("name", PAIRS)
def test_calling_gives_the_batchs_value_and_goes_on_accumulating(name):
    """Oracle: the function, on the batch and on the whole. Temperature and OOD detection are not
    defined for any batch: calling them returns None and still takes the batch."""
    logits, target = sample(2)
    metric, function = make(name), PAIRS[name][1]
    for z, y in batches(logits, target, {11, 25}):
        is_ood = isinstance(metric, accumulating.OODDetection)
        value = metric(z, y == 0 if is_ood else y)
        if is_ood or isinstance(metric, accumulating.TemperatureScaling):
            assert value is None
        else:
            same(value, function(z, y))
    same(metric.compute(), function(logits, target))


@pytest.mark.parametrize("name", PAIRS)
def test_reset_copies_and_pickles(name):
    """Oracle: the function. Break: a state shared between copies or left by reset, a class that
    cannot be pickled, a dtype conversion of the model that rounds the states."""
    logits, target = sample(3)
    expected = PAIRS[name][1](logits, target)
    metric = make(name)
    take(metric, -logits, target)
    metric.reset()
    take(metric, logits[:15], target[:15])
    copy = pickle.loads(pickle.dumps(metric)).clone().half()
    take(metric, -logits, target)
    take(copy, logits[15:], target[15:])
    same(copy.compute(), expected)


def test_in_a_collection_equal_states_are_kept_once():
    """Oracle: the functions. Metrics that keep the same numbers form one group; metrics that keep
    different numbers never do, even where these happen to be equal."""
    names = [name for name in PAIRS if name != "OODDetection"]
    logits, target = sample(4)
    together = MetricCollection({name: make(name) for name in names})
    for batch in batches(logits, target, {7, 8, 30}):
        together.update(*batch)
    found = together.compute()
    for name in names:
        same(found[name], PAIRS[name][1](logits, target))
    groups = [set(group) for group in together.compute_groups.values()]
    keeps = {name: make(name).keeps for name in names}
    for group in groups:
        assert len({keeps[name] for name in group}) == 1
    assert {"ClassEnergies", "ClasswiseECE", "TemperatureScaling"} <= max(groups, key=len)
    perfect = MetricCollection({"accuracy": make("Accuracy"), "nll": make("NLL")})
    for confident in (torch.tensor([[0.0, 0.0]]), torch.tensor([[50.0, 0.0]])):
        perfect.update(confident, torch.tensor([0]))
    assert len(perfect.compute_groups) == 2


def test_only_what_is_needed_is_kept_and_no_graph():
    """Oracle: the states. Break: logits kept for an accuracy; a graph that keeps every batch's
    activations alive."""
    logits, target = sample(5)
    logits = logits.requires_grad_()
    for name in PAIRS:
        metric = make(name)
        for z, y in batches(logits, target, {20}):
            take(metric, z, y)
        for state in metric.keeps:
            kept = getattr(metric, state)
            assert [len(k) for k in kept] == [20, 20]
            assert not any(k.requires_grad for k in kept)
            assert state == "logits" or all(k.ndim == 1 for k in kept)


def test_ood_detection_takes_batches_of_either_kind():
    """Oracle: `ood.detect`; one bool for a batch is as many for its rows."""
    inside, outside = 2 * sample(6)[0], sample(7)[0]
    one, other = accumulating.OODDetection(), accumulating.OODDetection()
    for z in outside.split(13):
        one.update(z, True)
    for z in inside.split(9):
        one.update(z, False)
    both = torch.cat([inside, outside])
    is_out = torch.arange(len(both)) >= len(inside)
    order = torch.randperm(len(both), generator=torch.Generator().manual_seed(0))
    for at in order.split(17):
        other.update(both[at], is_out[at])
    expected = ood.detect(inside, outside)
    same(one.compute(), expected)
    assert other.compute() == pytest.approx(expected, rel=1e-12)
    with pytest.raises(InputError, match=r"is_out to be one bool.*torch.int64"):
        one.update(inside, sample(6)[1])
    with pytest.raises(InputError, match=r"or \(40,\) bools"):
        one.update(inside, is_out)
    only = accumulating.OODDetection()
    only.update(inside, False)
    with pytest.raises(
        InputError, match="one example outside the distribution, but got none, only 40 in it"
    ):
        only.compute()


@pytest.mark.parametrize("name", PAIRS)
def test_nothing_and_bad_batches_are_refused(name):
    """Oracle: the message; and a refused batch leaves the metric as it was."""
    logits, target = sample(8)
    metric = make(name)
    with pytest.warns(UserWarning, match="before the"), pytest.raises(InputError, match="no ex"):
        metric.compute()
    take(metric, logits, target)
    with pytest.raises(InputError, match="at least one example and one class"):
        take(metric, logits[:0], target[:0])
    if name not in ("Accuracy", "BalancedAccuracy", "NLL", "Brier"):  # a NaN is wrong, or NaN
        with pytest.raises(InputError, match="those of 1 of 40 examples are not"):
            take(metric, logits.index_fill(0, torch.tensor([3]), torch.nan), target)
    same(metric.compute(), PAIRS[name][1](logits, target))


def test_logits_that_are_not_finite_are_what_the_functions_make_of_them():
    """Oracle: `metrics.accuracy` and `metrics.nll`, whose rules are older."""
    logits, target = torch.tensor([[torch.nan, 0.0], [2.0, 0.0]]), torch.tensor([0, 0])
    for name in ("Accuracy", "BalancedAccuracy", "NLL", "Brier"):
        metric = make(name)
        metric.update(logits, target)
        same(metric.compute(), PAIRS[name][1](logits, target))


def test_batches_of_different_classes_are_refused():
    """Oracle: the message; torch.cat's own would not say whose."""
    metric = accumulating.ClassEnergies()
    metric.update(torch.zeros(2, 3), torch.tensor([0, 1]))
    metric.update(torch.zeros(2, 4), torch.tensor([0, 1]))
    with pytest.raises(InputError, match=r"their logits have \[3, 4\]"):
        metric.compute()


def test_options_are_checked_when_it_is_made():
    """Oracle: the message; after an epoch would be late."""
    with pytest.raises(InputError, match="bins"):
        accumulating.ClasswiseECE(bins=0)
    with pytest.raises(InputError, match="binning"):
        accumulating.Reliability(binning="x")
    with pytest.raises(InputError, match="norm"):
        accumulating.CalibrationError(norm="x")
    with pytest.raises(InputError, match="not a function of"):
        accumulating.GradientShares("one_vs_rest(focal)")
    with pytest.raises(InputError, match="rise from 0"):
        accumulating.GradientShares("focal", edges=(0, 2))
    assert isinstance(accumulating.GradientShares(losslab.loss("focal")).loss, torch.nn.Module)


def _in_process(rank: int, folder: str) -> None:
    """One of two processes with 25 and 15 of the examples, and with all and none; each leaves what
    it computes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    logits, target = sample(9)
    some = [batches(logits, target, {10, 25})[:2], batches(logits, target, {25})[1:]]
    found = []
    for mine in (some[rank], batches(logits, target, {30}) if rank == 1 else []):
        for name in PAIRS:
            metric = make(name)
            for batch in mine:
                take(metric, *batch)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # compute before update
                found.append((name, metric.compute()))
            assert len(getattr(metric, metric.keeps[0])) == len(mine)  # its own again
    Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(found))
    torch.distributed.destroy_process_group()


def test_processes_share_their_examples(tmp_path):
    """Oracle: the function on the examples of both processes, which have different numbers of
    batches and examples, or none. Break: a state that is not gathered, or of a kind gloo cannot
    send; a process without examples that stops the others."""
    torch.multiprocessing.spawn(_in_process, (str(tmp_path),), nprocs=2)
    logits, target = sample(9)
    for rank in range(2):
        found = pickle.loads((tmp_path / f"{rank}.pickle").read_bytes())
        assert len(found) == 2 * len(PAIRS)
        for name, value in found:
            same(value, PAIRS[name][1](logits, target))


def test_the_functions_do_not_import_torchmetrics():
    """Oracle: sys.modules of a fresh interpreter."""
    code = "import sys, losslab.metrics; sys.exit('torchmetrics' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_without_torchmetrics_the_classes_say_what_to_install(monkeypatch):
    """Oracle: the message, where torchmetrics cannot be imported."""
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.delitem(sys.modules, "losslab.metrics.accumulating")
    with pytest.raises(InputError, match=r"pip install 'losslab\[lab\]'"):
        importlib.import_module("losslab.metrics.accumulating")


@pytest.mark.parametrize(
    ("is_out", "message"),
    [(False, "example outside the distribution, but got none, only 4 in it"),
     (True, "example in the distribution, but got none, only 4 outside it")],
)  # fmt: skip
def test_examples_of_one_side_alone_are_told(is_out, message):
    """Oracle: the message. Break: a message about a score's tensor that the caller never made."""
    metric = accumulating.OODDetection()
    metric.update(torch.randn(4, 3), is_out)
    with pytest.raises(InputError, match=message):
        metric.compute()
    with pytest.raises(InputError, match=r"is_out to be a torch\.Tensor of bools"):
        metric.update(torch.randn(2, 3), [True, False])
