"""The settings there are, by kind."""

from __future__ import annotations

from linear_operator.settings import _feature_flag, _value_context

from gp_rangeformer import settings

COUNTS = [(settings.min_size, 1), (settings.exact_size, 1), (settings.memory_limit, 0)]

CHOICES = [
    (settings.fused_kernels, ("compiled", "tensors", "off")),
    (settings.kernel_storage, ("auto", "dense", "tiles")),
]

FLAGS = [
    (settings.rangeformer, False),
    (settings.exact_line_search, True),
    (settings.deterministic, False),
]


def everything() -> set[str]:
    found = {
        name
        for name, setting in vars(settings).items()
        if isinstance(setting, type) and issubclass(setting, (_feature_flag, _value_context)) and name[0] != "_"
    }
    return found
