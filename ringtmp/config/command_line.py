"""The command line of the trainers: its flags and help are generated from the fields of `RunConfig`."""

import typing
from collections.abc import Sequence
from typing import Any

import click
from pydantic.fields import FieldInfo

from ringtmp.config.click_command import Command, Option, parse_words
from ringtmp.config.schema import REGISTRIES, RunConfig, make_config
from ringtmp.config.toml import read_toml

EXAMPLES = """
mpirun -n 8 python -m {prog}                                      digits, on 8 ranks
mpirun -n 3 python -m {prog} --data digits --model mlp:64-256x10-10 --epochs 10
mpirun -n 2 python -m {prog} --config run.toml --lr 1e-3          flags override the file
mpirun -n 5 python -m {prog} --resume runs/first --epochs 80      continue, on any number of ranks
"""


def choices(key: str, annotation: Any) -> list[str]:
    """The words that a field takes: the names in its registry, or of a Literal, also inside `Literal[...] | None`."""
    if key in REGISTRIES:
        registry, words = REGISTRIES[key]
        return [*words, *registry.names()]
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    return [word for part in typing.get_args(annotation) for word in choices(key, part)]


def shown_default(field: FieldInfo) -> Any:
    """The default of a field as a user types it; None: there is none."""
    return ("off", "on")[field.default] if isinstance(field.default, bool) else field.default


def setting_options(others: str = "") -> list[click.Option]:
    """An option for each field of `RunConfig`, under the heading of its group, and `--config`.

    Parameters
    ----------
    others : str
        The group of settings that only the other trainer uses; it has no flags here.
    """
    text = "TOML file with any of these names (batch_size = 64); flags override it"
    options: list[Option] = [Option("--config", metavar="FILE", type=click.Path(), help=text)]
    for key, field in RunConfig.model_fields.items():
        extra = typing.cast(dict[str, Any], field.json_schema_extra)
        if extra["group"] == others:
            continue
        words = choices(key, field.annotation)
        if not words and field.annotation is bool:
            words = ["on", "off"]
        default = shown_default(field)
        # Values are checked by RunConfig, whose messages name the key and say what was expected.
        options.append(
            Option(
                f"--{key.replace('_', '-')}",
                key,
                group=extra["group"],
                metavar="|".join(words) if words else key.split("_")[-1].upper(),
                help=(field.description or "") + ("" if default is None else f"  [default: {default}]"),
                words=words,
            )
        )
    groups = [each.group for each in options]
    ordered = sorted(options, key=lambda each: groups.index(each.group))  # those of a heading stand together
    return [*ordered]


def trainer_command(prog: str, about: str, others: str = "") -> Command:
    """The command line of a trainer that mpirun starts.

    Parameters
    ----------
    prog : str
        The program as typed after `python -m`.
    about : str
        First text of the help page.
    others : str
        The group of settings that only the other trainer uses; it has no flags here.
    """
    return Command(prog, params=setting_options(others), help=about, examples=EXAMPLES.format(prog=prog))


def read_values(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide the values `given` by flags: those of the file that `config` names, and those of the other flags.

    Raises `UserError` if the file cannot be read or holds an unknown key.
    """
    flags = {key: value for key, value in given.items() if key in RunConfig.model_fields and value is not None}
    path = given.get("config")
    from_file = read_toml(path) if path else {}
    if path:
        make_config(from_file, f"{path}: ")  # names the file in the message
    return from_file, flags


def parse(words: Sequence[str], prog: str, about: str, others: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
    """Parse a command line; return the values of the configuration file and those of the flags, not validated together.

    A file may hold settings of both trainers, so that one file serves to compare them.

    Parameters
    ----------
    words : sequence of str
        Words of the command line.
    prog : str
        The program as typed after `python -m`.
    about : str
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
    return read_values(parse_words(trainer_command(prog, about, others), f"python -m {prog}", [*words]))
