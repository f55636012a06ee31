"""The projection against closed forms."""

from __future__ import annotations

import torch

from del_core.training.projection import Projection, default_dim


def test_default_dimension():
    assert [default_dim(b) for b in (16, 256, 1024, 4096)] == [16, 32, 32, 128]


def test_pca_with_all_components_and_no_clipping_is_lossless():
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(200, 12, generator=generator) * 0.3 + 1.0
    projection = Projection.from_pca(embeddings, torch.ones(200), 12, inside=1.0)
    assert torch.allclose(projection(embeddings), embeddings, atol=1e-4)
    assert projection.encode(embeddings).abs().max() <= 1.0


def test_pca_is_weighted_by_frequency():
    # Two directions: rare tokens vary much along the first, frequent ones a little along the
    # second.
    embeddings = torch.tensor([[10.0, 0.0], [-10.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    frequent = Projection.from_pca(embeddings, torch.tensor([1e-6, 1e-6, 1.0, 1.0]), 1)
    uniform = Projection.from_pca(embeddings, torch.ones(4), 1)
    assert frequent.encoder.weight.abs().argmax() == 1
    assert uniform.encoder.weight.abs().argmax() == 0


def test_the_table_stays_in_range_and_rounds():
    projection = Projection(3, 2)
    with torch.no_grad():
        projection.encoder.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]))
        projection.encoder.bias.zero_()
    table = projection.table(torch.tensor([[5.0, -5.0, 0.0], [0.5, 0.249, 0.0]]), 100)
    assert table.tolist() == [[100, -100], [50, 25]]
