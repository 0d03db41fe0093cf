"""Layers of settings, later over earlier: a stored configuration, a file, flags."""

from typing import Any

# By setting: those of an earlier layer that it switches off, because the two cannot be combined.
_SWITCHES_OFF = {
    "steps": ("epochs",),
    "epochs": ("steps",),
    "mtbf": ("checkpoint_every",),
    "checkpoint_every": ("mtbf",),
    "servers": ("colocate",),
    "colocate": ("servers",),
    "consistency": ("staleness", "backup", "servers", "colocate", "compression", "local_steps"),
}


def merge(*layers: dict[str, Any]) -> dict[str, Any]:
    """Merge layers of settings.

    Parameters
    ----------
    *layers : dict
        Values by the names of `RunConfig`'s fields. A later layer has precedence; a setting of an earlier layer that
        cannot be combined with one of a later layer is removed.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for setting, switched_off in _SWITCHES_OFF.items():
            for other in switched_off if setting in layer else ():
                if other not in layer:
                    merged.pop(other, None)
        merged |= layer
    return merged
