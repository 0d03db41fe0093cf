"""Every way to train that an experiment or a benchmark compares: one name, one label, one colour, its settings.

To add a way: one entry of `WAYS`. Tables and result files contain its label, figures its label and its colour.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

Trainer = Literal["ring", "ps", "torch"]


@dataclass(frozen=True)
class Way:
    """A way to train.

    Parameters
    ----------
    label : str
        Its name in result files, tables and figures.
    colour : str
        Colour of its bars and curves, "#rrggbb".
    trainer : {"ring", "ps", "torch"}
        `ringtmp.train`, `ps.train`, or a program of PyTorch (`ringtmp.jobs.bench.torch_job`).
    settings : mapping
        Settings of the trainer besides those of a case. For PyTorch: `way`, a pipeline schedule or "ddp".
    serves : bool
        Whether one or more ranks only serve, and do not compute.
    """

    label: str
    colour: str
    trainer: Trainer
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    serves: bool = False

    @property
    def module(self) -> str:
        """The program of its trainer, for `python -m`."""
        return "ringtmp.ps.train" if self.trainer == "ps" else "ringtmp.train"

    @property
    def flags(self) -> tuple[str, ...]:
        """Its settings as command-line flags."""
        return tuple(
            word for key, value in self.settings.items() for word in (f"--{key.replace('_', '-')}", str(value))
        )

    def variant(self, text: str, **settings: Any) -> "Way":
        """The same way with other `settings`; `text` is appended to its label."""
        return replace(self, label=f"{self.label} {text}", settings={**self.settings, **settings})

    def named(self, label: str, **settings: Any) -> "Way":
        """The same way with the label `label` and more `settings`: several servers, several rings."""
        return replace(self, label=label, settings={**self.settings, **settings})


def _ps(label: str, colour: str, serves: bool, **settings: Any) -> Way:
    return Way(label, colour, "ps", settings, serves)


def _torch(label: str, colour: str, way: str) -> Way:
    return Way(label, colour, "torch", {"way": way})


WAYS: dict[str, Way] = {
    "ring": Way("ring", "#d1495b", "ring"),
    "rings": Way("rings side by side", "#7a1f2b", "ring"),
    "pipedream": Way("ring PipeDream", "#e07a9b", "ring", {"schedule": "pipedream"}),
    "pipedream-1": Way("ring PipeDream m=1", "#e8871e", "ring", {"schedule": "pipedream", "micro_batches": 1}),
    "2bw": Way("ring 2BW", "#b07aa1", "ring", {"schedule": "2bw"}),
    "bsp": _ps("server bsp", "#30638e", True, consistency="bsp"),
    "ssp": _ps("server ssp 3", "#00a6a6", True, consistency="ssp", staleness=3),
    "asp": _ps("server asp", "#56b4e9", True, consistency="asp"),
    "servers": _ps("several servers", "#2a7f3f", True, consistency="bsp"),
    "colocated": _ps("colocated servers", "#edae49", False, colocate=True),
    "allreduce": _ps("all-reduce", "#555555", False, consistency="allreduce"),
    "ddp": _torch("PyTorch DDP", "#ee4c2c", "ddp"),
    "gpipe": _torch("PyTorch GPipe", "#f4a582", "gpipe"),
    "1f1b": _torch("PyTorch 1F1B", "#d6604d", "1f1b"),
    "interleaved-zb": _torch("PyTorch interleaved zero-bubble", "#b2182b", "interleaved-zb"),
    "zbv": _torch("PyTorch ZBV", "#67001f", "zbv"),
}


def chosen(*names: str) -> dict[str, Way]:
    """Some ways, by label, in the order of `names` (keys of `WAYS`)."""
    return {WAYS[name].label: WAYS[name] for name in names}


def several_servers(count: int | str) -> Way:
    """The way with `count` servers that share the parameters (bsp)."""
    return WAYS["servers"].named(f"{count} servers bsp", servers=count)


def rings_of(rings: int, ranks: int) -> Way:
    """The way with `rings` rings side by side, `ranks` ranks in each."""
    return WAYS["rings"].named(f"{rings} rings of {ranks}", rings=rings)


def by_label(label: str) -> Way:
    """The way with the label `label`, or of which it is a variant ("ring auto", "2 servers bsp", "4 rings of 2").

    Raises `KeyError` for any other text.
    """
    if " rings of " in label:
        return WAYS["rings"]
    if " servers bsp" in label:
        return WAYS["servers"]
    found = [way for way in WAYS.values() if label == way.label or label.startswith((f"{way.label} ", f"{way.label},"))]
    if not found:
        raise KeyError(f"no way has the label {label!r}")
    return max(found, key=lambda way: len(way.label))


def colour_of(label: str) -> str:
    """Colour of the way that `label` names."""
    return by_label(label).colour
