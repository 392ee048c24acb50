"""Sets of graphs as the TU collection hands them out (Morris et al. 2020): text, a file a kind.

    NAME_A.txt                an edge a line: "row, column", nodes numbered from 1 over all graphs
    NAME_graph_indicator.txt  for each node the graph it belongs to, from 1
    NAME_graph_labels.txt     for each graph its class
    NAME_node_labels.txt      for each node its kind; may be missing

Read from a folder (such as the ``NAME/raw`` of PyTorch Geometric's ``TUDataset``) or out of an
archive as it lies. What comes out is what ``TUDataset`` makes of the same files: loops and
repeated edges left out, edges in order, the kind of a node one-hot (numeric attributes are not
used), classes numbered in the order of their labels. Nodes without a kind get their number of
edges, one-hot.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from losslab.errors import InputError
from losslab.experiment.tasks.official import places

if TYPE_CHECKING:
    import numpy as np

NEEDED = ("A", "graph_indicator", "graph_labels")
KINDS = "node_labels"
WHERE_TO_GET = "https://chrsmrrs.github.io/datasets/"
ARCHIVES = ("tu.tar.xz", "tu.tar.gz")
_MOST_KINDS = 10_000
_DAMAGE = (
    *(tarfile.TarError, lzma.LZMAError, zlib.error, zipfile.BadZipFile),
    *(EOFError, OSError, RuntimeError, NotImplementedError),  # the last two: zip files with a key
)
_AGAIN = "The file is damaged or cut short: download it again."

Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Graphs:
    """A set of graphs, one behind the other.

    Args:
        labels: Class of each graph ``(graphs,)``, from 0.
        class_names: The labels as they stand in the file.
        features: One-hot ``(nodes, kinds)``.
        edges: ``(2, edges)``, nodes numbered from 0 within their graph.
        nodes_at, edges_at: Where each graph's nodes and edges begin, and the last end.
        features_are: ``"kinds"`` of nodes, or ``"degrees"``.
        both_ways: Whether each edge is there in both directions.
        sha256: Of all of it.
    """

    labels: Tensor
    class_names: tuple[str, ...]
    features: Tensor
    edges: Tensor
    nodes_at: tuple[int, ...]
    edges_at: tuple[int, ...]
    features_are: str
    both_ways: bool
    sha256: str

    def __len__(self) -> int:
        return len(self.labels)

    def parts(self, graph: int) -> tuple[Tensor, Tensor]:
        """Features and edges of one graph."""
        nodes = slice(self.nodes_at[graph], self.nodes_at[graph + 1])
        edges = slice(self.edges_at[graph], self.edges_at[graph + 1])
        return self.features[nodes], self.edges[:, edges]


def read_named(name: str, data_dir: str | Path | None) -> Graphs:
    """A set of the TU collection by its name there, from a folder or an archive under data_dir.

    Raises:
        InputError: If it is not found, or a file is missing, damaged or cut short.
    """
    wanted = (
        f"{name} is read from {', '.join(f'{name}_{kind}.txt' for kind in (*NEEDED, KINDS))}, "
        f"in a folder or in {name}.zip or {ARCHIVES[0]} ({WHERE_TO_GET})"
    )
    folders = [f"{over}{name}{raw}" for over in ("tu/", "") for raw in ("/raw", f"/{name}/raw", "")]
    looked = places(wanted, data_dir, (*folders, "raw", "tu"))
    for place in looked:
        if any((place / f"{name}_{kind}.txt").is_file() for kind in NEEDED):
            return _whole(place, read_folder(place, name, kinds_needed=True))
    for place in looked:
        for file in (f"{name}.zip", *ARCHIVES):
            if (place / file).is_file():
                return _whole(place / file, _read_archive(place / file, name))
    raise InputError(f"{wanted}; none found. Looked in {', '.join(map(str, looked))}.")


def _whole(place: Path, graphs: Graphs) -> Graphs:
    if not graphs.both_ways:
        raise InputError(
            f"{place}: expected every edge in both directions, as the TU collection has them; some "
            f"are there in one only. {_AGAIN}"
        )
    return graphs


def name_in(folder: Path) -> str | None:
    """The name of the set that a folder holds files of; None if it holds none, or several."""
    end = "_graph_indicator.txt"
    found = [path.name.removesuffix(end) for path in folder.glob(f"*{end}")]
    return found[0] if len(found) == 1 else None


def read_folder(folder: Path, name: str, *, kinds_needed: bool = False) -> Graphs:
    """The set whose files lie in a folder."""
    paths = {kind: folder / f"{name}_{kind}.txt" for kind in (*NEEDED, KINDS)}
    _refuse_missing(
        folder, name, [kind for kind in paths if paths[kind].is_file()], kinds_needed=kinds_needed
    )
    changed = tuple(path.stat().st_mtime_ns for path in paths.values() if path.is_file())
    return _read_folder(folder.resolve(), name, changed)


def _read_archive(path: Path, name: str) -> Graphs:
    status = path.stat()
    return _read_packed(path.resolve(), name, status.st_size, status.st_mtime_ns)


def _refuse_missing(place: Path, name: str, found: list[str], *, kinds_needed: bool) -> None:
    missing = [kind for kind in NEEDED if kind not in found]
    if kinds_needed and KINDS not in found:
        missing.append(KINDS)
    if missing:
        files = ", ".join(f"{name}_{kind}.txt" for kind in missing)
        raise InputError(
            f"{place}: expected the files of {name}; {files} missing. "
            f"Copy or download the whole set ({WHERE_TO_GET})."
        )


@lru_cache(maxsize=2)  # a comparison may split a set anew for every seed
def _read_folder(folder: Path, name: str, _changed: tuple[int, ...]) -> Graphs:
    paths = {kind: folder / f"{name}_{kind}.txt" for kind in (*NEEDED, KINDS)}
    files = {kind: path.read_bytes() for kind, path in paths.items() if path.is_file()}
    return decode(str(folder), name, files)


@lru_cache(maxsize=2)
def _read_packed(path: Path, name: str, _size: int, _changed: int) -> Graphs:
    wanted = {f"{name}_{kind}.txt": kind for kind in (*NEEDED, KINDS)}
    try:
        unpack = _unzipped if path.suffix == ".zip" else _untarred
        files = {wanted[file]: content for file, content in unpack(path, set(wanted)).items()}
    except _DAMAGE as error:
        raise InputError(
            f"{path}: expected a complete {path.suffix.removeprefix('.')} archive; it cannot be "
            f"read ({type(error).__name__}: {error}). {_AGAIN}"
        ) from None
    _refuse_missing(path, name, [*files], kinds_needed=True)
    return decode(str(path), name, files)


def _untarred(path: Path, wanted: set[str]) -> dict[str, bytes]:
    unpack = lzma.decompress if path.suffix == ".xz" else gzip.decompress
    found = {}
    # Unpacked whole, to the checksum at its end.
    with tarfile.open(fileobj=io.BytesIO(unpack(path.read_bytes())), mode="r:") as archive:
        for member in archive:
            file = PurePosixPath(member.name).name
            stream = archive.extractfile(member) if file in wanted else None
            if stream is not None:
                found[file] = stream.read()
    return found


def _unzipped(path: Path, wanted: set[str]) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        names = [PurePosixPath(name) for name in archive.namelist()]
        return {name.name: archive.read(str(name)) for name in names if name.name in wanted}


def decode(where: str, name: str, files: Files) -> Graphs:
    """The graphs in the contents of the files, by what stands after ``NAME_`` in their names.

    Raises:
        InputError: With the file's name, for what is not as it should be.
    """
    import numpy as np

    def table(kind: str, columns: int | None = None) -> np.ndarray:
        return _table(f"{where}: {name}_{kind}.txt", files[kind], columns)

    written = table("graph_labels", 1)[:, 0]
    graph = table("graph_indicator", 1)[:, 0] - 1
    _check_indicator(f"{where}: {name}", graph, len(written))
    pairs = table("A", 2) - 1
    _check_edges(f"{where}: {name}", pairs, graph)
    row, column = _in_order(pairs, len(graph))
    kinds = table(KINDS) if KINDS in files else np.bincount(row, minlength=len(graph))[:, None]
    if len(kinds) != len(graph):
        raise InputError(
            f"{where}: {name}_{KINDS}.txt must have a line for each of the {len(graph)} nodes; "
            f"it has {len(kinds)}. {_AGAIN}"
        )
    features = _one_hot(f"{where}: {name}", kinds, from_least=KINDS in files)
    names, labels = np.unique(written, return_inverse=True)
    sizes = np.bincount(graph)
    nodes_at = np.concatenate([[0], np.cumsum(sizes)])
    back_row, back_column = _in_order(pairs[:, ::-1], len(graph))
    return Graphs(
        labels=torch.from_numpy(labels.astype(np.int64)),
        class_names=tuple(map(str, names)),
        features=features,
        edges=torch.from_numpy(np.stack([row, column]) - nodes_at[graph[row]]),
        nodes_at=tuple(nodes_at.tolist()),
        edges_at=tuple(np.searchsorted(row, nodes_at).tolist()),
        features_are="kinds" if KINDS in files else "degrees",
        both_ways=np.array_equal(row, back_row) and np.array_equal(column, back_column),
        sha256=_sha256(labels, sizes, row, column, kinds),
    )


def _check_indicator(where: str, graph: np.ndarray, count: int) -> None:
    import numpy as np

    steps = np.diff(graph)
    if graph[0] != 0 or graph[-1] != count - 1 or (steps < 0).any() or (steps > 1).any():
        raise InputError(
            f"{where}_graph_indicator.txt must number the graphs in ascending order from 1 to "
            f"{count}, the number of lines of the graph_labels, and leave none out; it goes from "
            f"{graph[0] + 1} to {graph[-1] + 1} and has {len(np.unique(graph))} numbers. {_AGAIN}"
        )


def _check_edges(where: str, pairs: np.ndarray, graph: np.ndarray) -> None:
    import numpy as np

    if pairs.min() < 0 or pairs.max() >= len(graph):
        raise InputError(
            f"{where}_A.txt must number the nodes from 1 to {len(graph)}, the number of lines of "
            f"the graph_indicator; it goes from {pairs.min() + 1} to {pairs.max() + 1}. {_AGAIN}"
        )
    ends = graph[pairs]
    crossing = np.flatnonzero(ends[:, 0] != ends[:, 1])
    if len(crossing):
        first, second = ends[crossing[0]] + 1
        raise InputError(
            f"{where}_A.txt, line {crossing[0] + 1}: an edge must join two nodes of one graph; it "
            f"joins nodes of graphs {first} and {second}. {_AGAIN}"
        )


def _table(where: str, content: bytes, columns: int | None) -> np.ndarray:
    """Whole numbers ``(lines, columns)``."""
    import numpy as np

    if not content.strip():
        raise InputError(f"{where} is empty. {_AGAIN}")
    try:
        found = np.loadtxt(
            io.BytesIO(content), dtype=np.int64, delimiter=",", ndmin=2, comments=None
        )
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"{where} cannot be read as whole numbers ({str(error).rstrip('.')}). {_AGAIN}"
        ) from None
    if columns is not None and found.shape[1] != columns:
        raise InputError(
            f"{where}: expected {columns} numbers a line, got {found.shape[1]}. Is it another file?"
        )
    return found


def _in_order(pairs: np.ndarray, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the edges, each once and no loops, by first and then second node."""
    import numpy as np

    kept = pairs[pairs[:, 0] != pairs[:, 1]]
    row, column = np.divmod(np.unique(kept[:, 0] * nodes + kept[:, 1]), nodes)
    return row, column


def _one_hot(where: str, kinds: np.ndarray, *, from_least: bool) -> Tensor:
    """Each column one-hot, beside each other; the least number, or 0, is the first."""
    import numpy as np

    least = kinds.min(axis=0) if from_least else np.zeros(kinds.shape[1], dtype=np.int64)
    numbers = kinds - least
    if numbers.max() >= _MOST_KINDS:
        what = f"{where}_{KINDS}.txt" if from_least else f"{where}: the degrees of its nodes"
        raise InputError(
            f"{what}: expected fewer than {_MOST_KINDS} kinds of nodes, one-hot; got numbers up to "
            f"{kinds.max()}. Number the kinds from 0."
        )
    columns = [torch.nn.functional.one_hot(column) for column in torch.from_numpy(numbers).T]
    return torch.cat(columns, dim=1).float()


def _sha256(*arrays: np.ndarray) -> str:
    """Of the content: the same graphs in another form (line ends, order of edges) are the same."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape}\n".encode())
        digest.update(array.astype("<i8").tobytes())
    return digest.hexdigest()
