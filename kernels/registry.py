"""What is found by its name: the files of a package, what other modules add, and what installed plug-ins bring.

    OPTIMIZERS: Registry[Rule] = Registry("optimizer", "ringtmp.kernels.optimizers")

A thing of ours is found because its file lies in the package's folder. A thing from outside is found once its module
has been imported: before `ringtmp.train` in Python, or by an installed distribution that names the module as an entry
point of the group `ringtmp.plugins`. Those modules are imported when a name is asked for that nothing else knows, so a
run without plug-ins pays nothing for them.

Optimizers and losses are described here, without Numba: a configuration is checked before anything compiled is loaded.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

PLUGINS = "ringtmp.plugins"

Thing = TypeVar("Thing")


@cache
def load_plugins() -> None:
    """Import the modules that installed distributions name in the entry-point group `PLUGINS`; once in a process."""
    for entry in entry_points(group=PLUGINS):
        entry.load()


class Registry(Generic[Thing]):
    """Things of one kind by name.

    Parameters
    ----------
    what : str
        The kind, for messages: ``optimizer``.
    package : str
        Import name of the package whose files declare our own things.
    by_file : bool
        Whether each file declares one thing under the file's name ("-" written "_"): then only the file asked for is
        imported, and names are known without an import. Otherwise all files are imported when a name is asked for.
    """

    def __init__(self, what: str, package: str, by_file: bool = True) -> None:
        self.what, self.package, self.by_file = what, package, by_file
        self._things: dict[str, Thing] = {}
        self._modules: dict[str, str] = {}  # that declares each thing, by its name
        self._files: dict[str, str] | None = None  # module of each file, by the name that it stands for

    def add(self, name: str, thing: Thing, module: str) -> None:
        """Register a thing.

        Parameters
        ----------
        name : str
            Under which it is found.
        thing : Thing
            What is found.
        module : str
            Import name of the module that declares it; it may do so again, as when it is reloaded.

        Raises
        ------
        ValueError
            Another module has taken the name.
        """
        first = self._modules.get(name, self._own_files().get(name, module) if self.by_file else module)
        if first != module:
            raise ValueError(f"{self.what} {name!r} is declared twice: in {first} and in {module}")
        self._things[name], self._modules[name] = thing, module

    def names(self) -> list[str]:
        """All names known so far; where each file declares one thing, those of files first."""
        files = self._own_files()
        if self.by_file:
            return [*files, *(name for name in self._things if name not in files)]
        return list(self._things)

    def __contains__(self, name: object) -> bool:
        if name not in self.names():
            load_plugins()
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __getitem__(self, name: str) -> Thing:
        """The thing called `name`; its file is imported if necessary. Raises `KeyError` that lists the known names."""
        if name not in self:
            raise KeyError(f"{self.what}: expected {one_of(self.names())}, got {name!r}")
        if name not in self._things:
            import_module(self._own_files()[name])
        return self._things[name]

    def _own_files(self) -> dict[str, str]:
        if self._files is None:
            spec = find_spec(self.package)
            folders = spec.submodule_search_locations if spec else None
            stems = sorted(path.stem for folder in folders or () for path in Path(folder).glob("[!_]*.py"))
            self._files = {stem.replace("_", "-"): f"{self.package}.{stem}" for stem in stems}
            if not self.by_file:
                for module in self._files.values():
                    import_module(module)
        return self._files


def one_of(names: list[str]) -> str:
    """The words of `names`, quoted and joined for a message: 'a', 'b' or 'c'."""
    quoted = [repr(name) for name in names]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


@dataclass(frozen=True)
class Rule:
    """An update rule and its kernels.

    Attributes
    ----------
    name : str
    slots : tuple of str
        Names of the arrays, as large as the parameters and 0 at first, that the rule keeps beside them.
    weight_decay : float
        Weight decay of a run that does not set it.
    settings : dict
        Names of the kernels' last arguments, in their order: None for what a run sets (`ringtmp.kernels.update.RUN`),
        and otherwise the value.
    in_place : callable
        ``in_place(w, g, *slots, *settings)``, all arrays flat and of one dtype. Steps are counted from 1.
    into : callable
        ``into(w, g, *slots, w_new, *slots_new, *settings)``: the same numbers beside the old ones, which stay.
    served : callable
        ``served(w, rows, which, scale, clip, room, *slots, *settings, first, last)``: numbers `first` to `last` - 1 in
        place, so that threads can share them; no split changes a bit. `ringtmp.kernels.update.summed` explains the
        others.
    """

    name: str
    slots: tuple[str, ...]
    weight_decay: float
    settings: dict[str, float | None]
    in_place: Callable[..., None]
    into: Callable[..., None]
    served: Callable[..., None]

    def arguments(self, **given: float) -> list[float]:
        """The kernels' last arguments, of which `given` holds what a run sets."""
        return [given[name] if value is None else value for name, value in self.settings.items()]


@dataclass(frozen=True)
class Loss:
    """A loss.

    Attributes
    ----------
    name : str
    target : str
        ``classes``: labels are int64 numbers of classes, one for each prediction, that is for each row of numbers along
        the last axis of the outputs. ``values``: labels are a row of numbers for each sample, as many as its outputs.
    probabilities : str or None
        Operator of ONNX that makes probabilities of the outputs, if any does.
    gives_r2 : bool
        Whether R2 is 1 - loss / (what the targets' mean would lose): of squared errors alone.
    evaluate : callable
        ``loss, correct = evaluate(outputs[m, c], labels, scale)``: the loss summed over the m predictions, and right
        answers among them (NaN where the target is a value). With `scale` above 0 the outputs become the gradient of
        `scale` times the sum; otherwise they stay. Labels are [m], or [m, c] for values.
    """

    name: str
    target: Literal["classes", "values"]
    probabilities: str | None
    gives_r2: bool
    evaluate: Callable[..., tuple[float, float]]

    @property
    def of_classes(self) -> bool:
        """Whether the target is a class."""
        return self.target == "classes"

    def label_dtype(self, dtype: Any) -> Any:
        """Dtype of labels in a run whose numbers are of `dtype`."""
        return "int64" if self.of_classes else dtype


OPTIMIZERS: Registry[Rule] = Registry("optimizer", "ringtmp.kernels.optimizers")
LOSSES: Registry[Loss] = Registry("loss", "ringtmp.kernels.losses")
