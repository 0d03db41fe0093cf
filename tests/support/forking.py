"""Programs in processes forked off a warm one: from a program's first line to its exit status, for a third of a start.

For programs that do not start MPI, and for tests of what they answer; how an interpreter starts is tested elsewhere.
"""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

# Imports what the programs import, MPI apart, which cannot be used after a fork. For each line it forks a process.
_SERVER = """
import gc, importlib, json, os, runpy, signal, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
assert "mpi4py.MPI" not in sys.modules
gc.freeze()  # else each process copies all pages as it ends
while line := sys.stdin.readline():
    module, folder, arguments = json.loads(line)
    files = [os.open(os.devnull, os.O_RDWR), os.memfd_create("out"), os.memfd_create("err")]
    if not (child := os.fork()):
        signal.alarm(60)
        os.chdir(folder)
        for number, file in enumerate(files):
            os.dup2(file, number)
        sys.argv[1:] = arguments
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        sys.exit()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([status, *(os.pread(file, 1 << 20, 0).decode() for file in files[1:])]), flush=True)
    for file in files:
        os.close(file)
"""


class Forks:
    """A warm interpreter, for the length of a ``with`` block, and programs in processes forked off it.

    Parameters
    ----------
    modules : iterable of str
        What the interpreter imports before it forks.
    """

    def __init__(self, modules: Iterable[str]) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER, *modules], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> "Forks":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.communicate(timeout=10)
        assert kind or self._server.returncode == 0

    def run(self, module: str, *arguments: object, cwd: Path | str = ".") -> subprocess.CompletedProcess:
        """What ``python -m MODULE ARGUMENTS`` in the folder `cwd` ends with: status, output and errors."""
        words = [module, str(Path(cwd).resolve()), list(map(str, arguments))]
        print(json.dumps(words), file=self._server.stdin, flush=True)
        return subprocess.CompletedProcess(words, *json.loads(self._server.stdout.readline()))
