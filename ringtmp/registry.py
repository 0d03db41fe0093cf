"""Things found by name: the files of one package, what other modules add, and what installed plug-ins bring.

    OPTIMIZERS: Registry[Rule] = Registry("optimizer", "kernels.optimizers")

A thing of ours is found because its file lies in the package's folder. A thing from outside is found once its module
has been imported: before `ringtmp.train` in Python, or by an installed distribution that names the module as an entry
point of the group `ringtmp.plugins`. Those modules are imported when a name is asked for that nothing else knows, so a
run without plug-ins pays nothing for them.
"""

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Generic, TypeVar

from ringtmp.errors import UserError

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
        self._files: dict[str, str] | None = None  # module of each file, by the name that it stands for

    def add(self, name: str, thing: Thing) -> None:
        """Let `thing` be found as `name`. Raises `ValueError` if another module has taken the name."""
        other = self._things.get(name)
        if other is not None and getattr(other, "__module__", None) != getattr(thing, "__module__", None):
            raise ValueError(f"{self.what} {name!r} is declared twice")
        self._things[name] = thing

    def names(self) -> list[str]:
        """All names known without plug-ins, those of files first."""
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
        """The thing called `name`, its file imported if need be. Raises `UserError` naming what is known."""
        if name not in self:
            raise UserError(f"{self.what}: expected {one_of(self.names())}, got {name!r}")
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
    """'a', 'b' or 'c'."""
    quoted = [repr(name) for name in names]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)
