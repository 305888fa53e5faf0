"""Seeds, checked array shapes, the host's own defaults, and no state that leaks from one test into the next."""

from __future__ import annotations

import gc
import importlib.util
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest

# Unchecked: expression, certified and its arguments refuse wrong arguments themselves; Triton compiles functions from
# their sources, unwrapped; small_cores is called a hundred times a step, and the checks take longer than its work.
UNCHECKED = re.compile(
    r"kernels\.(expression|gpu\.(tiles|products|profiles|cores))|solvers\.(arguments|certified)|system\.small_cores"
)


def _checked_modules() -> list[str]:
    """Every module of the packages that annotate shapes, found without importing any."""
    found = importlib.util.find_spec("gp_rangeformer")
    assert found is not None
    assert found.origin is not None
    root = Path(found.origin).parent
    modules = {file: file.relative_to(root).with_suffix("").parts for file in root.rglob("*.py")}
    packages = {parts[0] for file, parts in modules.items() if "from jaxtyping import" in file.read_text("utf-8")}
    assert packages >= {"kernels", "system", "preconditioner", "recycling", "logdet", "solvers", "rangeformer"}
    names = {".".join(parts) for parts in modules.values() if parts[0] in packages}
    return [f"gp_rangeformer.{name}" for name in sorted(names) if not UNCHECKED.fullmatch(name)]


# Every call in these modules is checked against its annotated shapes and types. What is imported before is not.
assert not any(name.startswith("gp_rangeformer.") for name in sys.modules)
jaxtyping.install_import_hook(_checked_modules(), "beartype.beartype")

import gpytorch  # noqa: E402
import torch  # noqa: E402
from linear_operator import settings as host_settings  # noqa: E402

import gp_rangeformer  # noqa: E402
from gp_rangeformer import settings  # noqa: E402
from gp_rangeformer.plugin import crossover  # noqa: E402

# The matrices here are small: threads cost more than they give. And the threaded LU of torch's MKL, which the dense
# comparisons use, was seen to hang now and then on 192 x 192 matrices (torch 2.13, two cores, plain torch.logdet).
torch.set_num_threads(1)

# What ``import botorch`` changes for the whole process, at GPyTorch's own values: test modules may import it.
HOST_DEFAULTS: list[tuple[Any, str, Any]] = [
    (host_settings._fast_covar_root_decomposition, "_default", True),
    (host_settings._fast_log_prob, "_default", True),
    (host_settings._fast_solves, "_default", True),
    (host_settings.cholesky_max_tries, "_global_value", 3),
    (host_settings.max_cholesky_size, "_global_value", 800),
    (gpytorch.settings.max_eager_kernel_size, "_global_value", 512),
]


def pytest_collection_finish() -> None:
    """What imports have made stays for good. Left out of every later garbage collection, of which some tests ask for
    dozens, it no longer costs each of them a sixth of a second."""
    gc.collect()
    gc.freeze()


def _host_state() -> dict[str, object]:
    """What a test could leave changed in the host's own settings."""
    return {
        "fast log_prob": host_settings.fast_computations.log_prob.on(),
        "fast solves": host_settings.fast_computations.solves.on(),
        "fast roots": host_settings.fast_computations.covar_root_decomposition.on(),
        "max_cholesky_size": host_settings.max_cholesky_size.value(),
        "fast_pred_var": gpytorch.settings.fast_pred_var.on(),
        "detach_test_caches": gpytorch.settings.detach_test_caches.on(),
        "lazily_evaluate_kernels": gpytorch.settings.lazily_evaluate_kernels.on(),
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
    }


@pytest.fixture(autouse=True)
def isolated() -> Iterator[None]:
    """Seeded, with empty memories and the host's defaults; fails the test if it leaves a setting changed. What a test
    set for the whole process to what held before is unset again."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # a fixture of a whole module may have run a command that sets them
    gp_rangeformer.clear_memory()
    for setting, attribute, value in HOST_DEFAULTS:
        setattr(setting, attribute, value)
    before, host_before = settings.current(), _host_state()
    stored = {name: getattr(settings, name)._stored() for name in before}
    yield
    gp_rangeformer.clear_memory()
    after = settings.current()
    for name, value in stored.items():
        getattr(settings, name)._store(value)
    assert after == before, "the test leaves a gp_rangeformer setting changed"
    assert _host_state() == host_before, "the test leaves a gpytorch or linear_operator setting changed"


@pytest.fixture
def predicts_small_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions of a few hundred points are the plug-in's too: at sizes that it leaves to the host, the same code as
    beyond takes seconds less."""
    monkeypatch.setattr(crossover, "POINTS", 0)
    monkeypatch.setattr(crossover, "NARROW", 0)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """PyTorch's number of threads for one test."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def as_after_botorchs_import() -> Iterator[None]:
    """What importing BoTorch sets for the process, inside the test alone; without its warnings."""
    from gp_rangeformer.lab.bench.small_tasks import botorch_conditions, has_botorch

    assert has_botorch()  # imported, and what that sets put back
    with botorch_conditions(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
