"""The command `ringtmp`: one sub-command for each module of `ringtmp.commands`, imported when it is asked for."""

import pkgutil
import sys
from importlib import import_module
from importlib.metadata import entry_points
from typing import NoReturn

import click

from ringtmp import commands
from ringtmp.comm.launcher import started_by_launcher
from ringtmp.config.click_command import WIDTH, Command, one_line
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
PLUGINS = "ringtmp.commands"  # entry points of installed distributions that bring a command: name = "module:attribute"


class Commands(click.Group):
    """The group of all commands: those of `ringtmp.commands`, and those of the entry points `ringtmp.commands`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, in alphabetical order."""
        own = [module.name for module in pkgutil.iter_modules(commands.__path__)]
        return sorted({*own, *(each.name for each in entry_points(group=PLUGINS))})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command called `name`, or None."""
        if any(module.name == name for module in pkgutil.iter_modules(commands.__path__)):
            return import_module(f"ringtmp.commands.{name}").command
        return next((each.load() for each in entry_points(group=PLUGINS, name=name)), None)

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
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": WIDTH,
        "terminal_width": WIDTH,
    },
)
@click.version_option(package_name="ringtmp", prog_name="ringtmp", message="%(prog)s %(version)s")
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


def main() -> NoReturn:
    """Run the command of this process's command line, on one rank or on all, and exit with its status."""
    words = sys.argv[1:]
    if started_by_launcher() and words:
        _as_rank(words)
    try:
        status = run(words)
    except UserError as error:
        print_line(error)
        status = 2
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:  # the reader has closed the pipe
        sys.stderr.close()
        status = 0
    sys.exit(status)


def _as_rank(words: list[str]) -> NoReturn:
    """Run the command of a process that a launcher has started beside others: most commands act on rank 0 alone."""
    from ringtmp.comm.mpi import from_rank_0, run_main

    command = cli.get_command(click.Context(cli), words[0])
    launched = command.launched if isinstance(command, Command) else "rank 0"
    if launched == "every rank":
        import_module(f"ringtmp.commands.{words[0]}").run_as_rank(words[1:])

    def work() -> int:
        if launched == "refuse":
            raise UserError(f"{words[0]} starts ranks itself; call it without mpirun or srun")
        return run(words)

    run_main(lambda comm, stop: from_rank_0(comm, work) or 128 * bool(stop.signal) + stop.signal)


if __name__ == "__main__":
    main()
