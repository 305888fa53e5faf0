"""Cores that are never looked at: what LAPACK says of regular ones, masks for the others, and Triton's the same."""

from __future__ import annotations

import importlib.util
import math
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from gp_rangeformer.kernels.native import product
from gp_rangeformer.system import device_cores
from gp_rangeformer.system.device_cores import (
    FAILURE,
    ITERATIONS,
    NOT_FINITE,
    NOT_PSD,
    QUOTIENT,
    REACHED,
    masked_cholesky,
    new_status,
)

ROWS = 200
SIZES = [1, 5, 33, 64]


def block(columns: int, *, dependent: bool = False) -> Tensor:
    made = torch.randn(ROWS, columns, generator=torch.Generator().manual_seed(columns), dtype=torch.float64)
    if dependent:
        made[:, 3] = made[:, 0] - 2 * made[:, 2]
    return made


def orthonormalise(made: Tensor, coefficients: Tensor, share: float, status: Tensor) -> Tensor:
    """In the inner product of P^-1 = 2 I."""
    m = made.shape[1]
    gram = made.mT @ made
    shares = torch.stack([torch.full((m,), share), torch.full((m,), math.inf)]).double()
    norm = torch.ones(m, dtype=torch.float64)
    return device_cores.orthonormalise(
        torch.stack([torch.cat([gram, 2 * gram], 1) / 2] * 2), coefficients, norm, shares, status, made.dtype
    )


@pytest.mark.parametrize("k", SIZES)
def test_a_regular_core_has_the_factor_of_lapack(k: int) -> None:
    core = block(k).mT @ block(k)
    factor, inverse, pivots = masked_cholesky(core, 0.0)
    torch.testing.assert_close(factor, torch.linalg.cholesky(core), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(inverse @ factor, torch.eye(k, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(pivots.sqrt(), factor.diagonal(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("dependent", [False, True])
def test_a_block_becomes_orthonormal_and_is_found_again(dependent: bool) -> None:
    made = block(9, dependent=dependent)
    status, coefficients = new_status(made), torch.eye(9, dtype=torch.float64)
    transform, rotation = orthonormalise(made, coefficients, 1e-3, status).chunk(2, dim=1)
    shared = made @ transform
    kept = torch.ones(9, dtype=torch.float64)
    if dependent:
        kept[3] = 0
        assert bool((shared[:, 3] == 0).all())
    torch.testing.assert_close(2 * shared.mT @ shared, kept.diag(), rtol=0, atol=1e-10)
    torch.testing.assert_close(shared @ rotation.mT, made, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(coefficients, rotation.mT)
    assert float(status[REACHED]) == pytest.approx(1e-3 / float(made.norm(dim=0).max()))


def test_nothing_moves_once_nothing_is_left_to_do() -> None:
    made, coefficients = block(5), torch.eye(5, dtype=torch.float64)
    status = new_status(made)
    orthonormalise(made, coefficients, 100.0, status)
    reached, known = float(status[REACHED]), coefficients.clone()
    assert reached > 1
    both = device_cores.conjugate((made.mT @ made).unsqueeze(0), coefficients, status, torch.float64)
    assert bool((both == 0).all())
    orthonormalise(2 * made, coefficients, 100.0, status)
    assert torch.equal(coefficients, known)
    assert status.tolist() == [reached, 0, 0, 0]


def test_a_curvature_is_inverted_and_its_largest_quotient_kept() -> None:
    made, coefficients = block(7), block(7)[:7]
    made[:, 2] = 0  # a direction that was masked
    curvature = made.mT @ made / ROWS
    status = new_status(made)
    both = device_cores.conjugate(torch.stack([curvature / 4, 0.75 * curvature]), coefficients, status, torch.float64)
    inverse = torch.linalg.pinv(curvature)
    torch.testing.assert_close(both, torch.cat([inverse @ coefficients, inverse], 1), rtol=1e-8, atol=1e-8)
    assert (float(status[ITERATIONS]), float(status[FAILURE])) == (1, 0)
    largest = float(torch.linalg.eigvalsh(inverse)[-1])
    assert 0.8 * largest <= float(status[QUOTIENT]) <= largest * (1 + 1e-12)


@pytest.mark.parametrize(("poison", "failure"), [(-1e-3, NOT_PSD), (math.nan, NOT_FINITE), (math.inf, NOT_FINITE)])
def test_a_curvature_without_a_factor_is_named_and_steps_nowhere(poison: float, failure: float) -> None:
    curvature = torch.eye(6, dtype=torch.float64)
    curvature[5, 5] = poison
    status = new_status(curvature)
    for _ in range(2):  # what has failed stays so
        both = device_cores.conjugate(curvature.unsqueeze(0), torch.eye(6, dtype=torch.float64), status, torch.float32)
        assert bool((both == 0).all())
        curvature = torch.eye(6, dtype=torch.float64)
    assert status.tolist() == [0, 0, failure, 0]


def test_the_best_combination_is_found_and_garbage_is_none() -> None:
    images, wanted = block(48).reshape(4, 50, 48)[:3].clone(), block(48)[:50]
    images[2] = images[1]  # once more
    norm = torch.linspace(1, 5, 48, dtype=torch.float64)
    found = device_cores.fit(images, wanted, norm, 1e-6)
    design, target = (images / norm).flatten(1), (wanted / norm).flatten()
    expected, *_ = np.linalg.lstsq(design.mT.numpy(), target.numpy(), rcond=1e-6)
    torch.testing.assert_close(found @ design, torch.from_numpy(expected) @ design, rtol=1e-8, atol=1e-8)
    images[0, 0, 0] = math.nan
    assert bool((device_cores.fit(images, wanted, norm, 1e-6) == 0).all())


@pytest.fixture
def triton_cores(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Compiled where there is a GPU, else interpreted."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("without Triton")
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    return importlib.import_module("gp_rangeformer.kernels.gpu.cores")


@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("dependent", [False, True])
def test_triton_computes_what_the_tensor_operations_say(triton_cores: ModuleType, m: int, dependent: bool) -> None:
    if dependent and m < 5:
        pytest.skip("nothing to depend on")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    made = block(m, dependent=dependent).to(device)
    curvature = made.mT @ made
    gram = torch.cat([curvature, 2 * curvature], 1)
    norm, sizes = torch.rand(m, device=device) + 1, torch.full((2, m), 0.3, dtype=torch.float64, device=device)
    images, noise = made[:96].reshape(6, 16, m).float(), torch.tensor(0.3, device=device).expand(ROWS)
    found = []
    for name in ("plain", "triton"):
        said = triton_cores if name == "triton" else None
        wide = said.wide_product if said else product._wide_product
        products, conjugate, again, sums, fit = (
            getattr(said, part) if said else getattr(device_cores, f"_{part}")
            for part in ("wide_gram", "conjugate", "orthonormalise", "column_sums", "fit")
        )
        status, coefficients = new_status(made), torch.eye(m, dtype=torch.float64, device=device)
        numbers = [
            conjugate(
                torch.stack([curvature, torch.eye(m, device=device).double()]), coefficients, status, torch.float64
            ),
            wide(made.float().mT.contiguous(), made[:, :2].contiguous()),
            products(made.float(), [made.float(), made.float().flip(0)]).sum(0),
            again(gram.unsqueeze(0), coefficients, norm, sizes, status, torch.float64),
            sums(made.float(), made.float().flip(0), made, made.flip(1), noise).sum(0),
            fit(images, made[:16].float(), norm, 1e-6).double(),
        ]
        found.append([*numbers, coefficients, status])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-9)
