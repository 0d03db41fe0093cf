"""The command `ringtmp`: one sub-command for each module of `ringtmp.commands`, imported when it is asked for."""

import os
import pkgutil
import sys
from importlib import import_module
from typing import NoReturn

import click

from ringtmp import __version__, commands
from ringtmp.comm.launcher import started_by_launcher
from ringtmp.commands._ranks import RankCommand
from ringtmp.config.click_command import CONTEXT, Command, one_line
from ringtmp.errors import UserError, print_line

ABOUT = "Train neural networks whose layers are spread over MPI ranks in a ring, and compare with parameter servers."
EXIT_STATUS = """\
Exit status:
  0    done
  1    a run or a command failed; the last line on standard error says why
  2    bad input: the line names the flag, key or file, and what was expected; nothing has been written
  75   stopped by SIGUSR1 to the supervisor: give the same command again to continue
  128+ stopped by a signal: 130 by Ctrl-C, 143 by SIGTERM; a run has written a checkpoint
"""


class Commands(click.Group):
    """The group of all commands: a module of `ringtmp.commands` each, with the name `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, in alphabetical order."""
        return [module.name for module in pkgutil.iter_modules(commands.__path__) if module.name[0] != "_"]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command called `name`, or None."""
        known = name in self.list_commands(ctx)
        return import_module(f"ringtmp.commands.{name}").command if known else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that `args` names, and the words after it. Raises `UserError` if there is none."""
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise UserError(f"command: expected one of {', '.join(self.list_commands(ctx))}, got {args[0]!r}")
        return super().resolve_command(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what the exit status means."""
        formatter.write(f"\n{EXIT_STATUS}")


@click.group(
    cls=Commands,
    help=ABOUT,
    context_settings=CONTEXT,
)
@click.version_option(__version__, message="ringtmp %(version)s")
def cli() -> None:
    pass


def run(words: list[str]) -> int:
    """Run the command that `words` name; return the exit status. Raises `UserError` for a bad command line."""
    try:
        status = cli.main(args=words, prog_name="ringtmp", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return 2
    except click.ClickException as error:
        raise one_line(error) from None
    except click.Abort:
        return 130
    return status if isinstance(status, int) else 0


def call(words: list[str]) -> int:
    """Run the command that `words` name in this process; print bad input as one line; return the exit status."""
    try:
        return run(words)
    except UserError as error:
        print_line(error)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def main() -> NoReturn:
    """Run the command of this process's command line, on one rank or on all, and exit with its status."""
    words = sys.argv[1:]
    if started_by_launcher() and words:
        _as_rank(words)
    sys.exit(call(words))


def _as_rank(words: list[str]) -> NoReturn:
    """Run the command of a process that a launcher has started: most commands act on rank 0 alone."""
    from ringtmp.comm.mpi import from_rank_0, run_main

    command = cli.get_command(click.Context(cli), words[0])
    launched = command.launched if isinstance(command, Command) else "rank 0"
    if isinstance(command, RankCommand):
        command.train_here(words[1:])
    if launched == "every rank":
        sys.exit(call(words))

    def work() -> int:
        if launched == "refuse":
            raise UserError(f"{words[0]} starts ranks itself; call it without mpirun or srun")
        return run(words)

    run_main(lambda comm, stop: from_rank_0(comm, work) or (128 + stop.signal if stop.signal else 0))


if __name__ == "__main__":
    main()
