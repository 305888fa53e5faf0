"""Graph Laplacians: rows that sum to the shift, and graphs with the look of their model."""

from __future__ import annotations

import pytest
import torch

from pretrain.matrices import (
    Laplacian,
)
from pretrain.matrices.laplacian import GRAPHS
from tests.pretrain.matrices.measures import COUNT, off_diagonal, seeded


@pytest.mark.parametrize("graph", GRAPHS)
def test_laplacian_rows_sum_to_the_shift_and_weights_are_positive(graph: str):
    matrices = Laplacian(graphs=(graph,)).draw(COUNT, 20, seeded())
    sums = matrices.sum(-1)
    torch.testing.assert_close(sums, sums[:, :1].expand_as(sums), atol=1e-10, rtol=1e-6)
    assert sums.min() > 0
    assert off_diagonal(matrices).max() <= 0


@pytest.mark.parametrize("graph", GRAPHS)
def test_every_vertex_of_a_sparse_graph_has_a_neighbour(graph: str):
    linked = off_diagonal(Laplacian(graphs=(graph,)).sample(COUNT, 60, seeded())) < 0
    degrees = linked.sum(-1).double()
    assert degrees.min() >= 1
    assert 2 < degrees.mean() < 9


def test_preferential_attachment_has_hubs_and_erdos_renyi_has_not():
    def hubs(graph: str) -> float:
        linked = off_diagonal(Laplacian(graphs=(graph,)).sample(COUNT, 100, seeded())) < 0
        degrees = linked.sum(-1).double()
        return float((degrees.amax(-1) / degrees.mean(-1)).mean())

    assert hubs("preferential") > 1.5 * hubs("erdos_renyi")


def test_neighbours_in_a_geometric_graph_share_neighbours():
    def clustering(graph: str) -> float:
        linked = (off_diagonal(Laplacian(graphs=(graph,)).sample(COUNT, 100, seeded())) < 0).double()
        paths = linked @ linked
        return float((paths * linked).sum() / off_diagonal(paths).sum())

    assert clustering("geometric") > 3 * clustering("erdos_renyi")
