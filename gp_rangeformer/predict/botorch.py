"""Paths as BoTorch's own path models, for ``optimize_acqf`` and Thompson sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gp_rangeformer.predict.paths import SamplePaths

if TYPE_CHECKING:
    from botorch.models.deterministic import GenericDeterministicModel


def botorch_path_model(paths: SamplePaths, index: int | None = None) -> GenericDeterministicModel:
    """A deterministic BoTorch model of one path or of all, as ``get_matheron_path_model(model, sample_shape)`` gives.

    Inputs and outcomes are those of the model that was sampled: a BoTorch model's transforms are part of its paths.

    :param index: the path, as without ``sample_shape``: (*batch) q x d -> (*batch) q x 1. None: all s of them, as with
        ``sample_shape=(s,)``, a batch of models: (*batch) x s x q x d, each path at points of its own, or
        (*batch) x 1 x q x d and q x d, all at the same, -> (*batch) x s x q x 1.
    :raises ImportError: BoTorch is not installed.
    :raises IndexError: there is no such path.
    :raises ValueError: of the model, where the inputs' batch does not end in s or 1.
    """
    try:
        from botorch.models.deterministic import GenericDeterministicModel
    except ImportError as error:
        raise ImportError("botorch_path_model needs BoTorch: pip install 'gp-rangeformer[botorch]'") from error

    if index is not None:
        one = paths[index]
        return GenericDeterministicModel(lambda x: one(x)[0].unsqueeze(-1), 1, torch.Size())
    model = GenericDeterministicModel(lambda x: _each_at_its_own(paths, x), 1, torch.Size([len(paths)]))
    model._is_ensemble = True  # as BoTorch marks its own
    return model


def _each_at_its_own(paths: SamplePaths, x: Tensor) -> Tensor:
    count, same = len(paths), x.dim() < 3 or x.shape[-3] == 1
    if same:
        values = paths(x)
        return (values.squeeze(-2) if x.dim() > 2 else values).movedim(0, -2).unsqueeze(-1)
    if x.shape[-3] != count:
        raise ValueError(
            f"inputs {tuple(x.shape)} for {count} paths: give (*batch) x {count} x q x d, each path at points of its "
            "own, or (*batch) x 1 x q x d, all at the same"
        )
    # All paths at all points: beside K(x, X), which the points cost, the columns that nobody reads are cheap.
    return paths(x).diagonal(dim1=0, dim2=-2).mT.unsqueeze(-1)
