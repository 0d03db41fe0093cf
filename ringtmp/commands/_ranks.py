"""The commands that train: `ringtmp train` and `ringtmp serve` start the ranks, or train on the ranks there are."""

import os
import shlex
import sys
from importlib import import_module
from typing import Any, NoReturn

import click

from ringtmp.comm.launcher import rank_command
from ringtmp.config.click_command import Command, Option
from ringtmp.errors import UserError


class RankCommand(Command):
    """A command with the flags of a trainer, and those that say how its ranks are started.

    Parameters
    ----------
    name : str
        Name of the command.
    module : str
        Import name of the program that each rank runs; its function `run` trains on the ranks there are.
    about : str
        First text of the help page.
    others : str
        The group of settings that only the other trainer uses.
    examples : str
        Last lines of the help page.
    """

    def __init__(self, name: str, module: str, about: str, others: str, examples: str) -> None:
        super().__init__(name, help=about, short_help=about.split(": ")[0].rstrip("."), examples=examples)
        self.module, self.others = module, others

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The flags: of the start, and those of the settings, whose schema is read only now."""
        if not self.params:
            from ringtmp.config.command_line import setting_options

            self.params = [
                Option(
                    "-n",
                    "--ranks",
                    type=click.IntRange(1),
                    help="number of ranks to start; default: one, or as many as the batch job has tasks",
                ),
                Option(
                    "--launcher",
                    metavar="CMD",
                    help="words that start ranks, such as 'mpirun --oversubscribe'; "
                    "default: srun in a SLURM job, else $MPIRUN, or the mpirun beside this Python, or on the PATH",
                ),
                *setting_options(self.others),
            ]
        return super().get_params(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words `args`, and keep them: the ranks parse them again."""
        ctx.meta["words"] = [*args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Start the ranks, or train in this process."""
        from ringtmp.config.command_line import read_values

        read_values(ctx.params)  # a bad file is reported before MPI or any rank starts
        ranks, launcher = ctx.params["ranks"], ctx.params["launcher"]
        words = without_start(ctx.meta["words"])
        if ranks is None and "SLURM_JOB_ID" in os.environ:
            ranks = int(os.environ.get("SLURM_NTASKS", 1))
        if ranks is None and not launcher:
            self._train(words)

        command = rank_command(self.module, words, ranks or 1, launcher or "")
        click.echo(shlex.join(command), err=True)
        sys.stdout.flush()
        try:
            os.execvp(command[0], command)
        except OSError as error:
            raise UserError(f"launcher: {command[0]}: {error.strerror}") from None

    def train_here(self, words: list[str]) -> NoReturn:
        """Train on the ranks that a launcher has started, as `words` say."""
        if without_start(words) != words:
            from ringtmp.comm.mpi import from_rank_0, run_main

            def refuse() -> None:
                raise UserError("ranks: this process is one of the ranks that mpirun or srun has started; leave out -n")

            run_main(lambda comm, stop: from_rank_0(comm, refuse))
        self._train(words)

    def _train(self, words: list[str]) -> NoReturn:
        import_module(self.module).run(words)
        raise AssertionError(f"{self.module}.run ends the process")


def without_start(words: list[str]) -> list[str]:
    """The words without the flags that say how ranks are started: `-n 8`, `-n8`, `--ranks 8`, `--ranks=8`."""
    flags = ("-n", "--ranks", "--launcher")
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word in flags:
            skip = True
        elif word.partition("=")[0] in flags or (word.startswith("-n") and word[2:].isdigit()):
            continue
        else:
            kept.append(word)
    return kept
