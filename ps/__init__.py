"""The baseline beside the ring: data-parallel training with parameter servers, or with an all-reduce.

    import ps
    result = ps.train(data="digits", consistency="ssp", staleness=3, epochs=5)

Made of the ring's own layers, kernels, data, traces and checkpoints, so that only the architecture differs.
"""

from typing import Any

__all__ = ["train"]


def __getattr__(name: str) -> Any:
    if name == "train":
        from ps.trainer import train

        return train
    raise AttributeError(f"module 'ps' has no attribute {name!r}")
