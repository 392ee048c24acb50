"""The network for whole graphs of Lee et al. (2019, SAGPool), as Zhao et al. (2022) train it.

Three times: a graph convolution (Kipf and Welling 2017), ReLU, and self-attention pooling, which
scores every node by a convolution of its own, keeps the best half of each graph and weights what it
keeps by tanh of the score. After each, maximum and mean over what is left of a graph are read out;
the three are added up and go through three layers to the logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from losslab.experiment.tasks.needed import needed

HIDDEN, RATIO, DROPOUT = 128, 0.5, 0.5


class SagPoolNetwork(nn.Module):
    """GCN × 3 with self-attention pooling; takes a batch of graphs of PyTorch Geometric.

    Args:
        features: Numbers a node.
        classes: Number of classes.
        hidden: Width of the convolutions.
        ratio: Share of a graph's nodes that each pooling keeps, rounded up.
    """

    def __init__(
        self, features: int, classes: int, hidden: int = HIDDEN, ratio: float = RATIO
    ) -> None:
        super().__init__()
        geometric = torch_geometric()
        widths = (features, hidden, hidden)
        self.convolutions = nn.ModuleList(geometric.nn.GCNConv(width, hidden) for width in widths)
        self.pools = nn.ModuleList(_pooling(geometric, hidden, ratio) for _ in widths)
        self.head = nn.Sequential(
            nn.Linear(2 * hidden, hidden),
            nn.ReLU(),
            nn.Dropout(DROPOUT),
            nn.Linear(hidden, hidden // 2),
            nn.ReLU(),
            nn.Linear(hidden // 2, classes),
        )

    def forward(self, graphs: Any) -> Tensor:
        pool = torch_geometric().nn
        x, edges, batch, count = graphs.x, graphs.edge_index, graphs.batch, graphs.num_graphs
        read = []
        for convolution, pooling in zip(self.convolutions, self.pools, strict=True):
            x = convolution(x, edges).relu()
            x, edges, _, batch, _, _ = pooling(x, edges, batch=batch)
            most = pool.global_max_pool(x, batch, count)
            read.append(torch.cat([most, pool.global_mean_pool(x, batch, count)], dim=1))
        return self.head(read[0] + read[1] + read[2])


def _pooling(geometric: Any, hidden: int, ratio: float) -> nn.Module:
    """SAGPooling without the factor ±1 that its newer versions put before the score.

    It is the sign of a parameter that has no gradient. Weight decay alone moves it, by Adam at full
    speed, past 0 in the end, where the score turns round and the other half of the nodes is kept.
    The versions that the papers used have no such factor.
    """
    pooling = geometric.nn.SAGPooling(hidden, ratio, GNN=geometric.nn.GCNConv)
    del pooling.select.weight
    pooling.select.register_buffer("weight", torch.ones(1, 1), persistent=False)
    return pooling


def torch_geometric() -> Any:
    """PyTorch Geometric, or the command that installs it."""
    with needed("PyTorch Geometric", "losslab[graph]"):
        import torch_geometric
        import torch_geometric.nn
    return torch_geometric
