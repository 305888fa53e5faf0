"""A table's regression as tensors and plain values, and made again from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.fit import FitResult
from gp_rangeformer.regression.choice import Candidate
from gp_rangeformer.regression.columns import Columns
from gp_rangeformer.regression.errors import SavedModelError
from gp_rangeformer.regression.fit_json import fit_from_json, fit_to_json
from gp_rangeformer.regression.kernels import Covariance, Regression, build_for_table, covariance, hyperparameters
from gp_rangeformer.regression.scaling import Scaling
from gp_rangeformer.regression.unfinished import Unfinished

_PARAMETERS = "parameters/"
_SHOWN = 5  # training rows, at most, whose kernel matrix tells one kernel from another


@dataclass(frozen=True, eq=False)
class State:
    """All that a :class:`~gp_rangeformer.regression.TableRegression` is, as it says of its attributes; ``unfinished``:
    what its fit has kept in a folder, until the model is."""

    target: str
    columns: Columns
    inputs: Scaling
    outputs: Scaling
    gp: Regression
    kernel: Covariance
    fit_result: FitResult | None = None
    level: float | None = None
    candidates: tuple[Candidate, ...] = ()
    notes: tuple[str, ...] = ()
    seed: int = 0
    unfinished: Unfinished | None = None


def tensors_of(state: State) -> dict[str, Tensor]:
    """Parameters, standardised training data, and the scaling that leads back."""
    gp: Any = state.gp
    scalings = {
        f"{name}/{part}": getattr(scaling, part)
        for name, scaling in (("inputs", state.inputs), ("target", state.outputs))
        for part in ("mean", "scale")
    }
    parameters = {_PARAMETERS + name: value for name, value in gp.state_dict().items()}
    data = {"train_x": gp.train_inputs[0], "train_y": gp.train_targets}
    return {**parameters, **scalings, **data, "kernel_values": _kernel_values(gp)}


@torch.no_grad()
def _kernel_values(gp: Any) -> Tensor:
    """K of the first training rows: what a kernel's printed form leaves out (nu, powers) shows in it."""
    with settings.rangeformer(False):
        return gp.covar_module(gp.train_inputs[0][:_SHOWN]).to_dense()


def description_of(state: State) -> dict[str, Any]:
    """The rest. Scaling and hyperparameters, which the tensors hold, once more for readers."""
    gp: Any = state.gp
    names, kernel = state.columns.names, state.kernel
    rows = zip(names, state.inputs.mean.tolist(), state.inputs.scale.tolist(), strict=True)
    return {
        "target": state.target,
        "columns": state.columns.to_json(),
        "scaling": {
            "inputs": {name: {"mean": mean, "scale": scale} for name, mean, scale in rows},
            "target": {"mean": float(state.outputs.mean), "scale": float(state.outputs.scale)},
        },
        "kernel": {"name": kernel.name, "title": kernel.title, "structure": repr(gp.covar_module)},
        "rows": len(gp.train_targets),
        "dtype": str(gp.train_targets.dtype).removeprefix("torch."),
        "seed": state.seed,
        "hyperparameters": hyperparameters(state.gp, names),
        "fit": None if state.fit_result is None else fit_to_json(state.fit_result),
        "level": state.level,
        "candidates": [asdict(one) for one in state.candidates],
        "notes": list(state.notes),
    }


def restored(tensors: Mapping[str, Tensor], content: Mapping[str, Any], kernel: Kernel | None, device: str) -> State:
    """What :func:`tensors_of` and :func:`description_of` were made of; the fit without its report.

    :param kernel: a fresh one, if it was given as a module.
    :raises SavedModelError: they do not belong to this version, or ``kernel`` is another one.
    """
    try:
        columns = Columns.from_json(content["columns"])
        x, y = tensors["train_x"].to(device), tensors["train_y"].to(device)
        inputs = Scaling(tensors["inputs/mean"], tensors["inputs/scale"])
        outputs = Scaling(tensors["target/mean"], tensors["target/scale"])
        if not x.shape[1] == len(columns.names) == len(inputs.mean):
            raise ValueError(f"{x.shape[1]} inputs, of which the columns give {len(columns.names)}")
        start = _kernel(content["kernel"], kernel, x.shape[1])
        gp = build_for_table(x, y, start)
        gp.load_state_dict(
            {name.removeprefix(_PARAMETERS): value for name, value in tensors.items() if name.startswith(_PARAMETERS)}
        )
        known, found = tensors["kernel_values"].to(device), _kernel_values(gp)
        if not torch.allclose(found, known, rtol=1e-4, atol=1e-4 * float(known.abs().amax())):
            raise SavedModelError("the kernel is not the one that was fitted: its values are others (nu? a power?)")
        return State(
            content["target"],
            columns,
            inputs,
            outputs,
            gp.eval(),
            start,
            None if content["fit"] is None else fit_from_json(content["fit"]),
            content["level"],
            tuple(Candidate(**one) for one in content["candidates"]),
            tuple(content["notes"]),
            content["seed"],
        )
    except SavedModelError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        raise SavedModelError(f"the model does not fit this version ({error!r}): fit again") from error


def _kernel(content: Mapping[str, Any], given: Kernel | None, d: int) -> Covariance:
    """Of the structure that was saved; its numbers follow."""
    name = content["name"]
    if given is None and name is None:
        raise SavedModelError(
            f"the kernel was given as a module, {content['title']}: make a fresh one and give it, as in "
            "TableRegression.load(folder, kernel=...)"
        )
    start = covariance(str(name), d, year=1.0) if given is None else Covariance(name, given)
    if repr(start.kernel) != content["structure"]:
        raise SavedModelError(f"the kernel is not the one that was fitted, which is\n{content['structure']}")
    return start
