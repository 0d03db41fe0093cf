"""The command line of the trainers: its flags and help are generated from the fields of `RunConfig`."""

import argparse
import typing
from pathlib import Path
from typing import Any, NoReturn

from ringtmp.config.schema import REGISTRIES, RunConfig, make_config
from ringtmp.config.toml import read_toml
from ringtmp.errors import UserError

EXAMPLES = """examples:
  mpirun -n 8 python -m {prog}                                      digits, on 8 ranks
  mpirun -n 3 python -m {prog} --data digits --model mlp:64-256x10-10 --epochs 10
  mpirun -n 2 python -m {prog} --config run.toml --lr 1e-3          flags override the file
  mpirun -n 5 python -m {prog} --resume runs/first --epochs 80      continue, on any number of ranks
"""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `UserError` for a bad command line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the flags)")


def checkpoint_parser(prog: str, description: str) -> Parser:
    """A parser for a command that uses a trained network; its first argument is a checkpoint.

    Parameters
    ----------
    prog : str
        The command as typed after `python -m`.
    description : str
        First text of the help page.
    """
    page = Parser(
        prog=f"python -m {prog}",
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    page.add_argument("checkpoint", help="run folder (its newest checkpoint), or runs/NAME/checkpoints/step-...")
    return page


def new_file(text: str) -> Path:
    """The path `text` of a file to write. Raises `UserError` if it exists."""
    if Path(text).exists():
        raise UserError(f"out: {text} exists already; give another name")
    return Path(text)


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=100)


def _choices(key: str, annotation: Any) -> list[str]:
    """The values of a field: the names in its registry, or of a Literal, also inside `Literal[...] | None`."""
    if key in REGISTRIES:
        registry, words = REGISTRIES[key]
        return [*words, *registry.names()]
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    return [word for part in typing.get_args(annotation) for word in _choices(key, part)]


def parser(prog: str, description: str, others: str = "") -> argparse.ArgumentParser:
    """A parser with one flag per field of `RunConfig`, in the fields' groups.

    Parameters
    ----------
    prog : str
        The command as typed after `python -m`.
    description : str
        First text of the help page.
    others : str
        The group of settings that only the other trainer uses; it has no flags here.
    """
    page = Parser(
        prog=f"python -m {prog}",
        usage=f"mpirun -n RANKS python -m {prog} [--flag value ...]",
        description=description,
        epilog=EXAMPLES.format(prog=prog),
        formatter_class=_Help,
        allow_abbrev=False,
    )
    page.add_argument(
        "--config", metavar="FILE", help="TOML file with any of these names (batch_size = 64); flags override it"
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for key, field in RunConfig.model_fields.items():
        extra = typing.cast(dict[str, Any], field.json_schema_extra)
        if extra["group"] == others:
            continue
        if extra["group"] not in groups:
            groups[extra["group"]] = page.add_argument_group(extra["group"])
        words = _choices(key, field.annotation)
        default = ("off", "on")[field.default] if isinstance(field.default, bool) else field.default
        text = (field.description or "").replace("%", "%%")
        groups[extra["group"]].add_argument(
            f"--{key.replace('_', '-')}",
            dest=key,
            default=argparse.SUPPRESS,
            metavar="|".join(words) if words else key.split("_")[-1].upper(),
            help=text if default is None else f"{text} [{default}]",
        )
    return page


def parse(argv: list[str], prog: str, description: str, others: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
    """Parse a command line; return the values of the configuration file and those of the flags, not validated together.

    A file may hold settings of both trainers, so that one file serves to compare them.

    Parameters
    ----------
    argv : list of str
        Words of the command line.
    prog : str
        The command as typed after `python -m`.
    description : str
        First text of the help page.
    others : str
        The group of settings that only the other trainer uses.

    Raises
    ------
    UserError
        An unknown flag or key, or a file that cannot be read.
    SystemExit
        After --help.
    """
    flags = vars(parser(prog, description, others).parse_args(argv))
    path = flags.pop("config", None)
    from_file = read_toml(path) if path else {}
    if path:
        make_config(from_file, f"{path}: ")  # names the file in the message
    return from_file, flags
