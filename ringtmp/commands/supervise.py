"""``python -m ringtmp supervise -n 8 -- python -m ringtmp.train ...``: start a job, and start it again when it is lost.

Needs nothing of MPI but that it can be started: the job ends with its first lost process, and begins again on what is
left, each rank with layers from the memory of the nodes (`ringtmp.resilience.node_memory`), at most one step behind.
"""

import argparse
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from ringtmp.config.command_line import Parser
from ringtmp.errors import UserError
from ringtmp.resilience.supervisor import Supervisor
from ringtmp.storage.run_folder import RunFolder

_PROGRAMS = {"ringtmp.train": "Server", "ps.train": "Ring"}


def _parser() -> argparse.ArgumentParser:
    page = Parser(
        prog="python -m ringtmp supervise",
        usage="python -m ringtmp supervise -n RANKS [--flag value ...] -- python -m ringtmp.train [--flag value ...]",
        description=__doc__.split("\n\n")[1],
        epilog="SIGINT and SIGTERM stop the job at its next step, with a checkpoint. SIGUSR1 to one rank makes its "
        "node leave at the next step; to the supervisor: the job stops there, exit status 75, to be started again.",
        allow_abbrev=False,
    )
    page.add_argument("-n", "--ranks", type=int, required=True, metavar="RANKS", help="ranks, as long as there is room")
    page.add_argument("--hosts", metavar="A,B:4,...", help="hosts, and the ranks on each if more than one")
    page.add_argument(
        "--probe",
        metavar="CMD",
        help="prints the hosts that can be used now, one per line, asked before each start. "
        "Default with --hosts: those that ssh reaches",
    )
    page.add_argument(
        "--probe-every",
        type=float,
        default=10.0,
        metavar="S",
        help="seconds between two looks whether a lost host is "
        "back while the job runs on fewer ranks; it then joins at a step's end [10]",
    )
    page.add_argument(
        "--min-ranks", type=int, default=1, metavar="N", help="wait for hosts rather than run on fewer [1]"
    )
    page.add_argument("--max-restarts", type=int, default=100, metavar="N", help="then the job is given up [100]")
    page.add_argument(
        "--back-off",
        type=float,
        default=1.0,
        metavar="S",
        help="seconds to wait before the next start when the last "
        "two made no step, twice as long each time, at most a minute [1]",
    )
    page.add_argument(
        "--standby",
        choices=("on", "off"),
        default="on",
        help="keep as many processes again, which have loaded everything and sleep: a lost job is back a second or two "
        "earlier, for about 150 MB a rank [on]",
    )
    page.add_argument(
        "--mpirun", default=_mpirun(), metavar="CMD", help="launcher, with flags of its own [%(default)s]"
    )
    page.add_argument(
        "--emulate",
        action="store_true",
        help="hosts are names only: all ranks run here, each node with memory of its own",
    )
    page.add_argument("program", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return page


def _mpirun() -> str:
    beside = Path(sys.executable).parent / "mpirun"
    return os.environ.get("MPIRUN") or (str(beside) if beside.exists() else "mpirun")


def _program(words: list[str]) -> tuple[list[str], str, list[str], dict[str, Any]]:
    """Interpreter, module, flags, and the values that these give. Raises `UserError`."""
    from ringtmp.config.command_line import parse
    from ringtmp.config.overrides import merge

    words = words[1:] if words[:1] == ["--"] else words
    if "-m" not in words[:4] or words[words.index("-m") + 1 :][:1] == []:
        got = shlex.join(words) or "none"
        raise UserError(f"program: expected -- python -m ringtmp.train (or ps.train) and its flags, got {got}")
    at = words.index("-m")
    module, flags = words[at + 1], words[at + 2 :]
    if module not in _PROGRAMS:
        raise UserError(f"program: expected ringtmp.train or ps.train, got {module}")
    if not shutil.which(words[0]):
        raise UserError(f"program: there is no {words[0]}")
    values = merge(*parse(flags, module, "", _PROGRAMS[module]))
    return words[:at], module, flags, values


def _replicate(module: str, values: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    """A flag that keeps copies in the nodes' memory, where nothing is said of it and a step is whole on all ranks.

    `stored`: the configuration of the run, if it has begun.
    """
    from ringtmp.config.overrides import merge

    if "state_copies" in values:
        return []
    values = merge(stored, values)
    if module == "ringtmp.train":
        able = values.get("schedule") not in ("pipedream", "2bw")
    else:
        able = values.get("consistency") != "allreduce" and str(values.get("backup", 0)) == "0"
    return ["--state-copies", "1"] if able else []


def _place(values: dict[str, Any], flags: list[str]) -> RunFolder:
    """The run folder of the job. Its name is settled here, so that it can be found again.

    One of that name that is not finished is gone on with: a batch system has started the same command again.
    """
    from ringtmp.config.schema import RunConfig
    from ringtmp.storage.run_folder import new_name, open_run_folder

    out = str(values.get("out", RunConfig.model_fields["out"].default))
    if values.get("resume") and not values.get("name"):
        return open_run_folder(str(values["resume"]), out)
    if not values.get("name"):
        name = new_name(out, str(values.get("data", RunConfig.model_fields["data"].default)))
        flags += ["--name", name]
        return RunFolder(Path(out) / name)
    folder = RunFolder(Path(out) / str(values["name"]))
    if folder.status().get("state") == "finished":
        raise UserError(
            f"name: {folder.path} exists already, is finished and is not overwritten; choose another --name, or go on "
            f"with --resume {folder.path}"
        )
    return folder


def main(argv: list[str]) -> int:
    """Run the command line; the exit status."""
    try:
        options = _parser().parse_args(argv)
        if not shutil.which(shlex.split(options.mpirun)[0]):
            raise UserError(f"mpirun: there is no {options.mpirun}; --mpirun names the launcher")
        if options.ranks < 1:
            raise UserError(f"ranks: expected a whole number above 0, got {options.ranks}")
        words, module, flags, values = _program(options.program)
        folder = _place(values, flags)
        stored = folder.config() if (folder.path / "config.toml").exists() else {}
        flags += _replicate(module, values, stored)
        return Supervisor(options, [*words, "-m", module], flags, folder).run()
    except UserError as error:
        print(f"ringtmp: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
