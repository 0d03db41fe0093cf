"""The baseline beside the ring: data-parallel training with parameter servers, or with an all-reduce.

    from ringtmp import ps
    result = ps.train(data="digits", consistency="ssp", staleness=3, epochs=5)

Made of the ring's own layers, kernels, data, traces and checkpoints, so that only the architecture differs. In a
checkout ``python -m ps.train`` starts it too; all of its code is imported as `ringtmp.ps`.
"""

from typing import Any

__all__ = ["train"]


def __getattr__(name: str) -> Any:
    if name == "train":  # loaded on first use, as ringtmp's names are
        from importlib import import_module

        globals()[name] = found = import_module("ringtmp.ps.trainer").train
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
