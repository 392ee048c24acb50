"""`proteins`, `nci1` and folders of graphs: made TU files, every refusal, the network, real files.

What the files mean is held to PyTorch Geometric's own `TUDataset`, the network to its formulas
written out with dense matrices, the split to the published code's.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import re
import sys
import tarfile
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import random_split

import losslab
from losslab.errors import InputError
from losslab.experiment.batched import Member, why_not
from losslab.experiment.claims import judge_claims
from losslab.experiment.comparison_recipe import read_comparison
from losslab.experiment.runner import run
from losslab.experiment.summary import load_planned
from losslab.experiment.tasks import TaskOptions, build_task
from losslab.experiment.tasks.graph.graphs import OFFICIAL_SHA256, collate, split
from losslab.experiment.tasks.graph.sag_pool import SagPoolNetwork, torch_geometric
from losslab.experiment.tasks.graph.tu_files import decode, read_named
from losslab.experiment.train import train

pytestmark = pytest.mark.usefixtures("one_thread")
DATA = Path(os.environ.get("LOSSLAB_DATA", Path(__file__).parents[2] / "shared" / "data"))
GRAPHS = 40


@pytest.fixture(scope="module")
def geometric():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torch_geometric")


def lines(values) -> bytes:
    return "".join(", ".join(map(str, np.atleast_1d(v))) + "\n" for v in values).encode()


def made(graphs: int = GRAPHS, seed: int = 0) -> dict[str, bytes]:
    """Files of rings of 3 to 8 nodes with a chord or two; the class is the kind of most nodes.

    Edges are shuffled, some are there twice, and some nodes are joined to themselves.
    """
    draw = np.random.default_rng(seed)
    edges, indicator, kinds, labels, first = [], [], [], [], 1
    for graph in range(graphs):
        size, label = int(draw.integers(3, 9)), graph % 2
        ring = [(k, (k + 1) % size) for k in range(size)]
        chords = [tuple(draw.integers(0, size, 2)) for _ in range(2)]
        edges += [(first + a, first + b) for a, b in ring + chords]
        kinds += [1 + label + int(k) for k in draw.integers(0, 2, size)]
        indicator += [graph + 1] * size
        labels.append((-1, 7)[label])
        first += size
    edges += [(b, a) for a, b in edges]
    draw.shuffle(edges)
    return {
        "A": lines(edges),
        "graph_indicator": lines(indicator),
        "graph_labels": lines(labels),
        "node_labels": lines(kinds),
    }


def put(folder: Path, files: dict[str, bytes], name: str = "PROTEINS") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, content in files.items():
        (folder / f"{name}_{kind}.txt").write_bytes(content)
    return folder


def pack(path: Path, files: dict[str, bytes], top: str, name: str = "PROTEINS") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for kind, content in files.items():
                archive.writestr(f"{top}/{name}_{kind}.txt", content)
        return path
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for kind, content in files.items():
            member = tarfile.TarInfo(f"{top}/{name}_{kind}.txt")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    press = lzma.compress if path.suffix == ".xz" else gzip.compress
    path.write_bytes(press(plain.getvalue()))
    return path


def build(folder: Path, **options):
    return build_task("proteins", TaskOptions(data_dir=folder, **options))


def refused(folder: Path, *texts: str, **options) -> None:
    with pytest.raises(InputError) as caught:
        build(folder, **options)
    for text in texts:
        assert text in str(caught.value), (text, str(caught.value))


# ---------------------------------------------------------------- what the files mean


def tu_dataset(geometric, folder: Path, name: str, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return geometric.datasets.TUDataset(str(folder), name, **options)


def test_graphs_are_those_of_tu_dataset(geometric, tmp_path):
    """Oracle: PyTorch Geometric's own reader. Break: another order of edges, loops or repeated
    edges kept, kinds or classes numbered otherwise."""
    files = made()
    put(tmp_path / "PROTEINS" / "raw", files)
    theirs = tu_dataset(geometric, tmp_path, "PROTEINS")
    ours = read_named("PROTEINS", tmp_path)
    assert len(ours) == len(theirs) == GRAPHS
    assert ours.class_names == ("-1", "7") and ours.features_are == "kinds"
    assert len(ours.edges[0]) < files["A"].count(b"\n")
    for number, graph in enumerate(theirs):
        features, edges = ours.parts(number)
        assert torch.equal(features, graph.x) and torch.equal(edges, graph.edge_index)
        assert ours.labels[number] == graph.y.item()


def test_several_columns_of_kinds(geometric, tmp_path):
    """Oracle: PyTorch Geometric's own reader. Break: columns one-hot together."""
    files = made()
    first = np.loadtxt(io.BytesIO(files["node_labels"]), dtype=int)
    files["node_labels"] = lines(np.stack([first, 5 - 2 * (first > 1)], axis=1))
    put(tmp_path / "PROTEINS" / "raw", files)
    theirs = tu_dataset(geometric, tmp_path, "PROTEINS")
    assert torch.equal(read_named("PROTEINS", tmp_path).features, theirs._data.x)


def test_graphs_without_kinds_have_degrees(geometric, tmp_path):
    """Oracle: PyTorch Geometric's `OneHotDegree` on `TUDataset`. A named set needs its kinds."""
    files = made()
    del files["node_labels"]
    put(tmp_path / "MINE" / "raw", files, "MINE")
    task = build_task(str(tmp_path / "MINE"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = tu_dataset(geometric, tmp_path, "MINE")
        most = max(int(geometric.utils.degree(g.edge_index[0]).max()) for g in theirs)
        one_hot = geometric.transforms.OneHotDegree(most)
        by_edges = {}
        for graph in theirs:
            graph.num_nodes = int(graph.edge_index.max()) + 1
            by_edges[str(graph.edge_index.tolist())] = one_hot(graph).x
    for part in (task.train, task.validation, task.test):
        for graph, _ in part:
            assert torch.equal(graph.x, by_edges[str(graph.edge_index.tolist())])
    assert task.name == "MINE" and "degrees" in task.description["preprocessing"][0]
    put(tmp_path / "named", files)
    refused(tmp_path / "named", "PROTEINS_node_labels.txt missing", "download the whole set")


def test_nodes_without_edges_stay(tmp_path):
    """Oracle: by hand, a graph of one pair and then one of a single node. (There `TUDataset` loses
    the last graph's edges.) Break: nodes counted by edges, or a last graph that is cut off."""
    files = {"A": b"1, 2\n2, 1\n", "graph_indicator": b"1\n1\n2\n", "graph_labels": b"0\n1\n"}
    graphs = decode("here", "X", {**files, "node_labels": b"0\n1\n1\n"})
    assert [tuple(map(tuple, part.tolist())) for part in graphs.parts(0)] == [
        ((1, 0), (0, 1)),
        ((0, 1), (1, 0)),
    ]
    features, edges = graphs.parts(1)
    assert features.tolist() == [[0, 1]] and edges.shape == (2, 0)
    assert not decode("here", "X", {**files, "A": b"1, 2\n"}).both_ways


FORMS = {
    "PyG": lambda place, files: put(place / "PROTEINS" / "raw", files),
    "ZH": lambda place, files: put(place / "PROTEINS" / "PROTEINS" / "raw", files),
    "folder": lambda place, files: put(place / "PROTEINS", files),
    "tu folder": lambda place, files: put(place / "tu" / "PROTEINS", files),
    "here": lambda place, files: put(place, files),
    "zip": lambda place, files: pack(place / "PROTEINS.zip", files, "PROTEINS"),
    "tar.xz": lambda place, files: pack(place / "tu" / "tu.tar.xz", files, "tu/PROTEINS"),
    "tar.gz": lambda place, files: pack(place / "tu.tar.gz", files, "tu/PROTEINS"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_makes_the_same_task(geometric, tmp_path, form):
    """Oracle: the fingerprint of the files in one folder. Windows' line ends change nothing."""
    put(tmp_path / "one", made())
    FORMS[form](tmp_path / "two", {kind: c.replace(b"\n", b"\r\n") for kind, c in made().items()})
    one, two = build(tmp_path / "one"), build(tmp_path / "two")
    assert one.description == two.description
    put(tmp_path / "three", made(seed=1))
    assert build(tmp_path / "three").description["sha256"] != one.description["sha256"]


def test_changed_files_are_read_again(geometric, tmp_path):
    """Oracle: the number of graphs. Break: a set kept from the last reading."""
    place = put(tmp_path, made())
    assert len(read_named("PROTEINS", tmp_path)) == GRAPHS
    put(place, made(30))
    for file in place.iterdir():
        os.utime(file, ns=(10**18, 10**18))
    assert len(read_named("PROTEINS", tmp_path)) == 30


# ---------------------------------------------------------------- the task


def test_what_the_task_says_of_itself(geometric, tmp_path):
    """Oracle: counts by hand, the settings of the published code."""
    task = build(put(tmp_path, made()))
    said = task.description
    assert said["sizes"] == {"train": 32, "validation": 4, "test": 4}
    labels = [y.item() for part in (task.train, task.validation, task.test) for _, y in part]
    counts = said["class_counts"]
    assert [sum(c[k] for c in counts.values()) for k in (0, 1)] == [20, 20]
    assert counts["train"] == np.bincount(labels[:32], minlength=2).tolist()
    assert said["split"]["seed"] == 0 and said["patience"] == task.patience == 50
    assert said["notes"][0].startswith("not the official PROTEINS: 40 graphs of ")
    adam = said["optimizer"]
    assert (adam["name"], adam["lr"], adam["weight_decay"]) == ("Adam", 5e-4, 1e-4)
    assert adam["betas"] == (0.9, 0.999) and task.batch_size == 128 and task.average == 1
    optimizer = task.optimizer(task.model().parameters())
    scheduler = task.lr_scheduler(optimizer, 3)
    for _ in range(3):
        assert optimizer.param_groups[0]["lr"] == 5e-4
        optimizer.step()
        scheduler.step()


def test_the_split_is_the_published_codes(tmp_path):
    """Oracle: torch's `random_split` with the code's sizes. ``split_seed`` alone decides."""
    put(tmp_path, made(43))
    graphs = read_named("PROTEINS", tmp_path)
    sizes = [int(43 * 0.8), int(43 * 0.1), 43 - int(43 * 0.8) - int(43 * 0.1)]
    for seed in (0, 1, 5):
        torch.manual_seed(seed + 9)
        parts = split(graphs, TaskOptions(split_seed=seed))
        theirs = random_split(range(43), sizes, torch.Generator().manual_seed(seed))
        assert [part.tolist() for part in parts] == [list(part.indices) for part in theirs]
    train, validation, test = split(graphs, TaskOptions(split_seed=5, validation_fraction=0.3))
    assert torch.equal(test, parts[2]) and len(validation) == 12 and len(train) == 26
    fewer, *others = split(graphs, TaskOptions(split_seed=5, train_size=10))
    assert len(fewer) == 10 and set(fewer.tolist()) < set(parts[0].tolist())
    assert all(torch.equal(a, b) for a, b in zip(others, parts[1:], strict=True))


def test_a_class_without_training_graphs_is_refused(geometric, tmp_path):
    """Oracle: the one graph of a class, tried in every split."""
    labels = made()["graph_labels"].replace(b"7", b"-1")[:-3] + b"7\n"
    put(tmp_path, {**made(), "graph_labels": labels})
    graphs = read_named("PROTEINS", tmp_path)
    for seed in range(20):
        order = torch.randperm(GRAPHS, generator=torch.Generator().manual_seed(seed))
        if GRAPHS - 1 in order[:32]:
            split(graphs, TaskOptions(split_seed=seed))
        else:
            refused(tmp_path, "no graph of class '7' for training", split_seed=seed)
    assert GRAPHS - 1 in order  # the last seed's; both ways were tried if this file has not changed


def test_options_that_cannot_be_heeded(geometric, tmp_path):
    """Oracle: the usual errors."""
    put(tmp_path, made())
    refused(tmp_path, "takes no target", target="x")
    refused(tmp_path, "takes no image_size", image_size=64)
    refused(tmp_path, "has no model 'gcn'", "gcn-sagpool", model="gcn")
    with pytest.raises(InputError, match="takes no data_dir"):
        build_task(str(tmp_path), TaskOptions(data_dir=tmp_path))


# ---------------------------------------------------------------- the network


def dense(network: SagPoolNetwork, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """The logits of one graph, from Kipf and Welling's and Lee et al.'s formulas."""

    def convolved(layer, x, adjacency):
        loops = adjacency + torch.eye(len(x))
        scale = loops.sum(1).rsqrt()
        return scale[:, None] * loops * scale @ x @ layer.lin.weight.T + layer.bias

    adjacency = torch.zeros(len(x), len(x))
    adjacency[edges[0], edges[1]] = 1
    read = 0
    for layer, pool in zip(network.convolutions, network.pools, strict=True):
        x = convolved(layer, x, adjacency).relu()
        score = convolved(pool.gnn, x, adjacency)[:, 0].tanh()
        kept = score.topk(-(-len(x) // 2)).indices
        x, adjacency = x[kept] * score[kept, None], adjacency[kept][:, kept]
        read = read + torch.cat([x.max(0).values, x.mean(0)])
    first, _, _, second, _, third = network.head
    return third(second(first(read).relu()).relu())


def test_the_network_is_its_formulas(geometric):
    """Oracle: dense matrices, one graph at a time. Break: another normalisation, pooling or
    readout, or graphs of a batch that see each other."""
    torch.manual_seed(3)
    network = SagPoolNetwork(5, 3, hidden=16).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    examples = []
    for size in (1, 2, 3, 7, 8):
        adjacency = torch.triu(torch.rand(size, size) < 0.5, 1)
        edges = (adjacency | adjacency.T).nonzero().T
        graph = geometric.data.Data(x=torch.randn(size, 5), edge_index=edges)
        examples.append((graph, torch.tensor(size % 3)))
    batch, target = collate(examples)
    logits = network(batch)
    alone = torch.stack([dense(network, g.x, g.edge_index) for g, _ in examples])
    torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-5)
    assert target.tolist() == [1, 2, 0, 1, 2] and logits.std(0).min() > 1e-3


def test_no_parameter_turns_the_scores_round(geometric):
    """Oracle: the weights after a training that does nothing but decay. Break: the sign that
    PyTorch Geometric puts before the score, which decay drives past 0."""
    network = SagPoolNetwork(3, 2, hidden=8)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1, weight_decay=1.0)
    for _ in range(60):
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    assert all(pool.select.weight.item() == 1 for pool in network.pools)
    theirs = geometric.nn.SAGPooling(8, 0.5, GNN=geometric.nn.GCNConv)
    names = {name for name, _ in network.pools[0].named_parameters()}
    assert {name for name, _ in theirs.named_parameters()} - names == {"select.weight"}


@pytest.mark.filterwarnings("ignore")
def test_it_learns_and_repeats(geometric, tmp_path):
    """Oracle: the same run twice, to the bit; accuracy far above chance on graphs whose class is
    the kind of most nodes."""
    put(tmp_path, made(150))
    task = build(tmp_path, epochs=2, lr=0.01, batch_size=32)
    one, two = (train(task, losslab.loss("cross_entropy"), seed=1) for _ in range(2))
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(a, b)
    longer = train(replace(task, epochs=20), losslab.loss("cross_entropy"), seed=1)
    assert longer.curves["train_loss"][:2] == one.curves["train_loss"]
    assert longer.results["validation_selected"]["test"]["accuracy"] >= 0.8
    assert why_not(task, [Member(losslab.loss("cross_entropy"), 0)] * 2)


def test_a_late_bonus_changes_nothing_before(geometric, tmp_path):
    """Oracle: cross-entropy's own run: the same losses in the epochs before, others after."""
    put(tmp_path, made())
    task = build(tmp_path, epochs=4)
    late = "encouraging(rho=deferred(1, start=0.5), log_end=0.5)"
    ce, el = (train(task, losslab.loss(spec), seed=2) for spec in ("cross_entropy", late))
    before, after = (np.array([run.curves["train_loss"] for run in (ce, el)]).T[part]
                     for part in (slice(2), slice(2, 4)))  # fmt: skip
    assert before[:, 0] == pytest.approx(before[:, 1], rel=1e-6)
    assert (after[:, 0] > after[:, 1] + 0.3).all()


@pytest.mark.parametrize(
    "name, deferred, published",
    [("zh-t1-proteins", 25, (0.7232, 0.7276)), ("zh-t1-nci1", 130, (0.7053, 0.7104))],
)
def test_the_bonus_begins_where_the_published_code_lets_it(name, deferred, published):
    """Oracle: that code's condition, cross-entropy while epoch <= defer_start, from epoch 0."""
    for size in ("small", "full"):
        recipe = read_comparison(name, size=size)
        assert recipe.options.epochs is None and recipe.resample
        loss, steps = losslab.loss(recipe.losses["EL"]), 26
        total = 1000 * steps
        loss.set_progress((steps * (deferred + 1) - 1) / total)
        assert float(loss.rho) == 0
        loss.set_progress(steps * (deferred + 1) / total)
        assert float(loss.rho) == 1
        assert tuple(recipe.claims[0].published.values()) == published


def test_the_recipe_on_made_graphs(geometric, tmp_path):
    """Oracle: the runs' own numbers. Each seed has its own split, the same for all losses; claims
    are judged at the epoch that validation chose and not at the last."""
    put(tmp_path / "data", made(60))
    changes = {"seeds": [0, 1, 2], "task.epochs": 6, "task.lr": 0.02, "task.batch_size": 8}
    recipe = read_comparison("zh-t1-proteins", data_dir=tmp_path / "data", changes=changes)
    run(recipe.comparison(tmp_path / "run"))
    comparison, planned = load_planned(tmp_path / "run")
    assert len(planned) == 9
    splits = {(r["seed"], r["task"]["sha256"]) for r in planned}
    assert len(splits) == 3 and len({sha for _, sha in splits}) == 3
    scores = {
        label: [
            r["results"]["validation_selected"]["test"]["accuracy"]
            for r in sorted(planned, key=lambda r: r["seed"])
            if r["loss"]["label"] == label
        ]
        for label in ("EL", "CE")
    }
    (claim,) = judge_claims(tmp_path / "run", comparison, planned)
    assert claim["means"] == pytest.approx([np.mean(scores["EL"]), np.mean(scores["CE"])])
    last = [r["results"]["last"]["test"]["accuracy"] for r in planned]
    chosen = [r["results"]["validation_selected"]["test"]["accuracy"] for r in planned]
    assert last != chosen  # or the lines above show nothing


# ---------------------------------------------------------------- what is missing or damaged


def test_no_library(geometric, monkeypatch, tmp_path):
    """Oracle: one that is not there and one that breaks; both name the command that installs it."""
    put(tmp_path, made())
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    refused(tmp_path, "pip install 'losslab[graph]'", "ModuleNotFoundError")
    (tmp_path / "torch_geometric.py").write_text("raise RuntimeError('operator not found')")
    monkeypatch.delitem(sys.modules, "torch_geometric")
    monkeypatch.syspath_prepend(tmp_path)
    refused(tmp_path, "pip install 'losslab[graph]'", "RuntimeError: operator not found")
    monkeypatch.undo()
    assert torch_geometric() is geometric


def test_nothing_there(geometric, tmp_path):
    """Oracle: no folder, a missing one, an empty one, another set's archive."""
    refused(None, "PROTEINS_A.txt", "tu.tar.xz", "--data-dir", "https://")
    refused(tmp_path / "nowhere", "is not a folder")
    refused(tmp_path, "none found. Looked in", str(tmp_path / "tu" / "PROTEINS"))
    pack(tmp_path / "tu.tar.xz", made(), "tu/NCI1", "NCI1")
    refused(tmp_path, "tu.tar.xz: expected the files of PROTEINS", "PROTEINS_A.txt")
    assert len(build_task("nci1", TaskOptions(data_dir=tmp_path)).train) == 32


@pytest.mark.parametrize("kind", made())
@pytest.mark.parametrize("form", ["folder", "zip", "tar.xz"])
def test_one_file_missing(geometric, tmp_path, kind, form):
    """Oracle: each file taken away in turn is named."""
    files = made()
    del files[kind]
    FORMS[form](tmp_path, files)
    refused(tmp_path, f"PROTEINS_{kind}.txt missing", "Copy or download the whole set")


@pytest.mark.parametrize(
    "how",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-3],
        lambda content: content[:3],
        lambda content: b"",
        lambda content: b"<html>not found</html>",
        lambda content: content[:200] + bytes([content[200] ^ 0xFF]) + content[201:],
    ],
    ids=["half", "end missing", "header only", "empty", "web page", "flipped byte"],
)
@pytest.mark.parametrize("form", ["zip", "tar.xz", "tar.gz"])
def test_damaged_archive(geometric, tmp_path, form, how):
    """Oracle: each damage is refused with the archive's name and what to do, never read half."""
    path = FORMS[form](tmp_path, made())
    path.write_bytes(how(path.read_bytes()))
    refused(tmp_path, str(path), "download it again")


@pytest.mark.parametrize(
    "kind, how, text",
    [
        ("A", lambda c: c[: len(c) // 2].rpartition(b"\n")[0], "every edge in both directions"),
        ("A", lambda c: b"", "PROTEINS_A.txt is empty"),
        ("A", lambda c: c + b"1, 1000\n", "number the nodes from 1 to "),
        ("A", lambda c: c + b"0, 1\n", "it goes from 0 to "),
        ("A", lambda c: b"1, 30\n" + c, "line 1: an edge must join two nodes of one graph"),
        ("A", lambda c: c + b"3\n", "cannot be read as whole numbers"),
        ("A", lambda c: c.replace(b",", b";"), "cannot be read as whole numbers"),
        ("A", lambda c: b"<html>", "cannot be read as whole numbers"),
        ("A", lambda c: c + b"99999999999999999999, 1\n", "cannot be read as whole numbers"),
        ("graph_indicator", lambda c: c[: len(c) // 2].rpartition(b"\n")[0], "from 1 to 40"),
        ("graph_indicator", lambda c: c.replace(b"1\n", b"2\n", 1), "it goes from 2 to 40"),
        ("graph_indicator", lambda c: re.sub(rb"(?m)^9$", b"8", c), "has 39 numbers"),
        ("graph_indicator", lambda c: c + b"3\n", "ascending order"),
        ("graph_indicator", lambda c: c + b"9000000000000\n", "it goes from 1 to 9000000000000"),
        ("graph_indicator", lambda c: lines([[1, 2]]), "expected 1 numbers a line, got 2"),
        ("graph_labels", lambda c: c + b"7\n", "from 1 to 41"),
        ("graph_labels", lambda c: c.replace(b"7", b"7.5"), "cannot be read as whole numbers"),
        ("node_labels", lambda c: c[:-2], "a line for each of the "),
        ("node_labels", lambda c: c[:-2] + b"100000000\n", "fewer than 10000 kinds"),
    ],
)
def test_damaged_text(geometric, tmp_path, kind, how, text):
    """Oracle: one thing wrong with one file, said of this file."""
    files = made()
    put(tmp_path, {**files, kind: how(files[kind])})
    refused(tmp_path, text)


# ---------------------------------------------------------------- real data


@pytest.mark.parametrize(
    "name, graphs, nodes, edges, kinds, classes",
    [
        ("PROTEINS", 1113, 39.06, 72.82, 3, (663, 450)),
        ("NCI1", 4110, 29.87, 32.30, 37, (2053, 2057)),
    ],
)
def test_real_sets(name, graphs, nodes, edges, kinds, classes):
    """Oracle: the collection's own statistics: graphs, mean nodes and edges, kinds, classes."""
    if not (DATA / "tu").is_dir():
        pytest.skip(f"no real data: {DATA / 'tu'} (set LOSSLAB_DATA)")
    found = read_named(name, DATA)
    assert len(found) == graphs and found.features.shape[1] == kinds
    assert len(found.features) / graphs == pytest.approx(nodes, abs=0.005)
    assert found.edges.shape[1] / 2 / graphs == pytest.approx(edges, abs=0.005)
    assert torch.bincount(found.labels).tolist() == list(classes)
    assert found.sha256 == OFFICIAL_SHA256[name]
