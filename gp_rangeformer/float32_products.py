"""Products of float32 matrices in float32, whatever precision the process asks of PyTorch for them."""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
from collections.abc import Iterator

import torch


class Float32Products:
    """Products of float32 matrices, which ``torch.set_float32_matmul_precision`` and its newer kin may round to
    bfloat16 or TF32: steps that need 1e-4 then take 5 to 20 times as long, or fall back.

    The setting is the process's, not the thread's: the first call that meets it sets it aside, the last one that is
    left restores it.
    """

    _NEWER = hasattr(torch._C, "_get_fp32_precision_getter")  # PyTorch 2.9: one for every backend
    _WHOLE = frozenset(("highest", "ieee", "none"))

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0  # calls
        self._met = False  # from then on all calls are counted: what they read may be another call's doing
        self._before: tuple[str | None, dict[str, str]] = (None, {})

    def may_be_rounded(self) -> bool:
        """Whether a call must enter :meth:`whole`. 0.4 us."""
        return not self._WHOLE.issuperset(self._precisions().values()) or self._met  # in this order

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        with self._lock:
            self._met = True
            if self._inside == 0:
                self._before = self._set_aside()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._restore(*self._before)

    def _precisions(self) -> dict[str, str]:
        """Those that hold, of every backend. Newer versions deprecate what older ones have."""
        if not self._NEWER:
            return {"all": torch.get_float32_matmul_precision()}
        getter = torch._C._get_fp32_precision_getter  # type: ignore[attr-defined]
        return {"cuda": getter("cuda", "matmul"), "mkldnn": getter("mkldnn", "matmul")}

    def _set_aside(self) -> tuple[str | None, dict[str, str]]:
        """What the older interface and the newer one say, changed to whole products where they are not."""
        precisions = self._precisions()
        if self._WHOLE.issuperset(precisions.values()):
            return None, {}
        older = _older_precision()
        if older not in (None, "highest"):
            torch.set_float32_matmul_precision("highest")  # both: what asks through the older one raises else
        else:
            for backend in precisions:
                _set_precision(backend, "ieee")
        return older, precisions

    def _restore(self, older: str | None, precisions: dict[str, str]) -> None:
        if not precisions or not self._WHOLE.issuperset(self._precisions().values()):
            return  # there was nothing to do, or somebody has chosen another since
        if older not in (None, "highest"):
            torch.set_float32_matmul_precision(older)
        for backend, precision in precisions.items():
            if self._precisions()[backend] == precision:
                continue
            _set_precision(backend, "none")  # what the backends have in common, if the user has set that
            if self._precisions()[backend] != precision:
                _set_precision(backend, precision)


FLOAT32_PRODUCTS = Float32Products()


def _older_precision() -> str | None:
    """None where the newer interface was used, which the older one then refuses to answer beside."""
    _warned_of_older_precision()
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


@functools.cache
def _warned_of_older_precision() -> None:
    """The first use of the older interface warns in some versions; the user has not used it."""
    with warnings.catch_warnings(), contextlib.suppress(RuntimeError):
        warnings.simplefilter("ignore")
        torch.get_float32_matmul_precision()


def _set_precision(backend: str, precision: str) -> None:
    torch._C._set_fp32_precision_setter(backend, "matmul", precision)  # type: ignore[attr-defined]
