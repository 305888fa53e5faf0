"""gpflash (Marchildon 2026, arXiv:2610.16861) as a contender: exact, C++, float64, on the CPU."""

from __future__ import annotations

from typing import Any

import torch

from gp_rangeformer.lab.bench.contenders import Clock, Evaluation, Problem, UnavailableError, import_peer
from gp_rangeformer.lab.compare.audit import Parameters, gradient_vector, restore
from gp_rangeformer.lab.models import build_model

# Its kernels that are GPyTorch's, with one inverse lengthscale per input.
_KERNELS = {"matern32": "Matern32", "matern52": "Matern52", "rbf": "SqExp"}


class GpflashContender:
    """``gpflash.eval_mll`` with its gradient, carried to GPyTorch's raw hyperparameters.

    gpflash has no fixed constant mean (it estimates one): it is given y minus the state's mean and no mean of its own,
    so everything is its gradient but the derivative with respect to the mean, which ``covered`` leaves out. It shifts
    the diagonal to bound the condition number by 1e10, its default: 2e-9 nats per point at n = 2000, growing with n.
    Its threads are its own choice (OMP_NUM_THREADS, else all cores).

    :raises UnavailableError: gpflash is not installed, has no such kernel, or the device is not the CPU.
    """

    name = "gpflash"

    def __init__(self, problem: Problem) -> None:
        if problem.device != "cpu":
            raise UnavailableError("gpflash runs on the CPU only")
        if problem.kernel not in _KERNELS:
            raise UnavailableError(f"gpflash is set up for the kernels {', '.join(_KERNELS)}")
        self._gpflash = import_peer("gpflash")
        dataset = problem.dataset
        self._model: Any = build_model(dataset, problem.kernel)[0]
        self._y = dataset.train_y.numpy()
        self._data = self._gpflash.TrainingData()
        self._data.X_ndim_ntrain_mat = dataset.train_x.numpy().T
        self._data.sig2_f_val = -1.0  # the noise is a hyperparameter, with a derivative
        self._options = self._gpflash.ModelOptions()
        self._options.kernel_id = getattr(self._gpflash.KernelId, _KERNELS[problem.kernel])
        self._options.has_mean_model_constant = False

    def evaluate(self, state: Parameters) -> Evaluation:
        model, n = self._model, len(self._y)
        restore(model, state)
        model.zero_grad()
        self._data.f_train_vec = self._y - model.mean_module.constant.item()
        with Clock(torch.device("cpu")) as clock:
            rate = model.covar_module.base_kernel.lengthscale.reciprocal()
            scale, noise = model.covar_module.outputscale, model.likelihood.noise
            hyperparameters = self._gpflash.HpVal()
            hyperparameters.hp_gamma_vec = rate.detach().flatten().numpy()
            hyperparameters.hp_sig2_k = scale.item()
            hyperparameters.hp_sig2_f_val = noise.item()
            result = self._gpflash.eval_mll(self._data, hyperparameters, self._options, return_mll_gradient=True)
            found = result.mll_hp_grad_struct
            derivatives = (found.d_mll_d_hp_gamma_vec, found.d_mll_d_hp_sig2_k, found.d_mll_d_hp_sig2_f_val)
            gradients = [
                torch.as_tensor(derivative, dtype=torch.float64).reshape(parameter.shape) / -n
                for derivative, parameter in zip(derivatives, (rate, scale, noise), strict=True)
            ]
            torch.autograd.backward((rate, scale, noise), gradients)
        learnable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        covered = torch.cat([torch.full((p.numel(),), p.grad is not None) for p in learnable])
        gradient = gradient_vector(model)
        return Evaluation(clock.seconds, clock.processor, result.mll / n, gradient, covered, system=clock.system)
