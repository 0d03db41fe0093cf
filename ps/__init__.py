"""The baseline beside the ring: data-parallel training with parameter servers, or with an all-reduce.

    import ps
    result = ps.train(data="digits", consistency="ssp", staleness=3, epochs=5)

Made of the ring's own layers, kernels, data, traces and checkpoints, so that only the architecture differs.
"""

from typing import Any

__all__ = ["train"]


def __getattr__(name: str) -> Any:
    if name == "train":  # loaded on first use, as ringtmp's names are
        from importlib import import_module

        globals()[name] = found = import_module("ps.trainer").train
        return found
    raise AttributeError(f"module 'ps' has no attribute {name!r}")
