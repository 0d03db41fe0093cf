"""The command `ringtmp supervise`: start a job, and restart it when a rank is lost."""

import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from ringtmp.comm.launcher import find_mpirun
from ringtmp.config.click_command import Command, argument, option
from ringtmp.errors import UserError

if TYPE_CHECKING:
    from ringtmp.storage.run_folder import RunFolder

HELP = """Start a job, and restart it when a rank is lost.

Works with any MPI: the job ends with its first lost process and starts again on the remaining hosts. Each rank takes
its layers from node memory, so that at most one step is repeated.

SIGINT and SIGTERM stop the job at its next step, with a checkpoint. SIGUSR1 to one rank removes its node at the next
step; SIGUSR1 to the supervisor stops the job at the next step with exit status 75, to be restarted."""
EXAMPLES = """
ringtmp supervise -n 4 -- python -m ringtmp.train --epochs 5 --name survivor
ringtmp supervise -n 8 --hosts node1:4,node2:4 -- python -m ringtmp.train --name survivor
"""
_PROGRAMS = {"ringtmp.train": "Server", "ps.train": "Ring", "ringtmp.ps.train": "Ring"}


@click.command(
    "supervise",
    cls=Command,
    help=HELP,
    short_help="Start a job, and restart it when a rank is lost",
    examples=EXAMPLES,
    launched="refuse",
    context_settings={"allow_interspersed_args": False},
)
@option("-n", "--ranks", type=int, required=True, help="number of ranks while all hosts are available")
@option("--hosts", metavar="A,B:4,...", help="hosts, and the number of ranks on each if above one")
@option(
    "--probe",
    metavar="CMD",
    help="command that prints the usable hosts, one per line; run before each start. Default with --hosts: the hosts "
    "that ssh reaches",
)
@option(
    "--probe-every",
    type=float,
    default=10.0,
    metavar="S",
    help="seconds between two checks whether a lost host is available again, while the job runs on fewer ranks; the "
    "host then joins at the end of a step",
)
@option("--min-ranks", type=int, default=1, metavar="N", help="wait for hosts instead of running on fewer ranks")
@option("--max-restarts", type=int, default=100, metavar="N", help="give up after this number of restarts")
@option(
    "--back-off",
    type=float,
    default=1.0,
    metavar="S",
    help="seconds to wait before a restart if the last two launches made no step; doubled each time, up to a minute",
)
@option(
    "--standby",
    type=click.Choice(["on", "off"]),
    default="on",
    help="keep the same number of sleeping processes that have loaded everything: a lost job is back one or two "
    "seconds earlier, at about 150 MB per rank",
)
@option("--mpirun", metavar="CMD", help="launcher and its flags; default: $MPIRUN, or the mpirun beside this Python")
@option(
    "--emulate",
    is_flag=True,
    help="hosts are names only: all ranks run on this machine, each emulated node with its own node memory",
)
@argument(
    "program", nargs=-1, type=click.UNPROCESSED, metavar="-- PROGRAM", help="python -m ringtmp.train (or ps.train)"
)
def command(program: tuple[str, ...], **parameters: Any) -> int:
    from ringtmp.resilience.supervisor import Supervisor

    options = SimpleNamespace(**parameters)
    options.mpirun = options.mpirun or find_mpirun()
    if not shutil.which(shlex.split(options.mpirun)[0]):
        raise UserError(f"mpirun: {options.mpirun} does not exist; name the launcher with --mpirun")
    if options.ranks < 1:
        raise UserError(f"ranks: expected a whole number above 0, got {options.ranks}")
    words, module, flags, values = _program([*program])
    folder = _run_folder(values, flags)
    stored = {}
    if (folder.path / "config.toml").exists():
        folder.check_format()
        stored = folder.config()
    flags += _state_copies(module, values, stored)
    return Supervisor(options, [*words, "-m", module], flags, folder).run()


def _program(words: list[str]) -> tuple[list[str], str, list[str], dict[str, Any]]:
    """Divide the command into interpreter, module and flags, with the settings that these give. Raises `UserError`."""
    from ringtmp.config.command_line import parse
    from ringtmp.config.overrides import merge

    words = words[1:] if words[:1] == ["--"] else words
    if "-m" not in words[:4] or words[words.index("-m") + 1 :][:1] == []:
        got = shlex.join(words) or "none"
        raise UserError(f"program: expected -- python -m ringtmp.train (or ps.train) and its flags, got {got}")
    at = words.index("-m")
    module, flags = words[at + 1], words[at + 2 :]
    if module not in _PROGRAMS:
        raise UserError(f"program: expected ringtmp.train or ps.train, got {shlex.join(words[at + 1 :])}")
    if not shutil.which(words[0]):
        raise UserError(f"program: {words[0]} does not exist")
    values = merge(*parse(flags, module, "", _PROGRAMS[module]))
    return words[:at], module, flags, values


def _state_copies(module: str, values: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    """The flag that keeps copies in node memory, unless the user set it or the schedule has no complete steps.

    Parameters
    ----------
    module : str
        ringtmp.train or ps.train.
    values : dict
        Settings of the command line.
    stored : dict
        Settings of the run folder, if the run has begun; else empty.
    """
    from ringtmp.config.overrides import merge
    from ringtmp.schedule.registry import schedule_named

    if "state_copies" in values:
        return []
    values = merge(stored, values)
    if module == "ringtmp.train":
        able = schedule_named(values.get("schedule")).synchronous
    else:
        able = values.get("consistency") != "allreduce" and str(values.get("backup", 0)) == "0"
    return ["--state-copies", "1"] if able else []


def _run_folder(values: dict[str, Any], flags: list[str]) -> "RunFolder":
    """The run folder of the job; chooses its name here, so that a restart finds it.

    An unfinished run of that name is continued: a batch system has started the same command again.
    """
    from ringtmp.config.schema import RunConfig
    from ringtmp.storage.run_folder import RunFolder, new_name, open_run_folder

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
            f"name: {folder.path} exists already, is finished and is not overwritten; choose another --name, or "
            f"continue it with --resume {folder.path}"
        )
    return folder
