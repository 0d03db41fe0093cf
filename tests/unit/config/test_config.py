"""Configuration: one model for flags, files and keyword arguments."""

import tomllib

import click
import pytest

from ringtmp.config.command_line import parse, trainer_command
from ringtmp.config.overrides import merge
from ringtmp.config.schema import RunConfig, make_config
from ringtmp.errors import UserError
from ringtmp.storage.run_folder import RunFolder, make_run_folder

KEYS = list(RunConfig.model_fields)


def help_page(command):
    return command.get_help(click.Context(command))


def flags(*words):
    return parse(list(words), "ringtmp.train", "about")[1]


def test_every_key_is_a_flag_with_help():
    page = help_page(trainer_command("ringtmp.train", "about"))
    for key, field in RunConfig.model_fields.items():
        assert f"--{key.replace('_', '-')} " in page
        assert field.description
    assert flags(*[word for key in KEYS for word in (f"--{key.replace('_', '-')}", "1")]) == dict.fromkeys(KEYS, "1")


def test_text_becomes_numbers():
    config = make_config(flags("--batch-size", "32", "--lr", "1e-2", "--trace", "off", "--seed", "7"))
    assert (config.batch_size, config.lr, config.trace, config.seed) == (32, 0.01, False, 7)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"batchsize": 1}, "unknown key 'batchsize'; did you mean 'batch_size'"),
        ({"xyzzy": 1}, "unknown key 'xyzzy'; known keys: data"),
        ({"epochs": 0}, "epochs: expected greater than or equal to 1, got 0"),
        ({"epochs": "1.5"}, "epochs: expected a valid integer"),
        ({"lr": float("inf")}, "lr: expected a finite number"),
        ({"mode": "fast"}, "mode: expected 'ready' or 'strict', got 'fast'"),
        ({"trace": "maybe"}, "trace: expected a valid boolean"),
        ({"name": ""}, "name: expected a folder name"),
        ({"name": ".."}, "name: expected a folder name"),
        ({"epochs": 2, "steps": 3}, "epochs and steps: expected one of them"),
        ({"seed": -1}, "seed: expected greater than or equal to 0"),
        ({"model": 3}, "model: expected"),
        ({"jitter": 0.1}, "jitter: only emulated nodes have it; give --node-speed as well"),
        ({"jitter": 1.0, "node_speed": "2"}, "jitter: expected less than 1, got 1.0"),
        ({"schedule": "pipedream", "mode": "ready"}, "mode: schedule pipedream has an order of its own"),
        ({"schedule": "2bw", "mode": "strict"}, "mode: schedule 2bw follows no plan"),
        ({"schedule": "pipedream", "clip_norm": 1.0}, "clip_norm: waits for all ranks in each step"),
        ({"schedule": "pipedream", "chunks": 2}, "chunks: schedule pipedream takes 1, got 2"),
        ({"schedule": "2bw", "chunks": 3}, "chunks: schedule 2bw takes 1, got 3"),
        ({"chunks": 0}, "chunks: expected greater than or equal to 1, got 0"),
        ({"w_group": 0}, "w_group: expected greater than or equal to 1"),
        ({"in_flight": "few"}, "in_flight: expected a valid integer"),
    ],
)
def test_faults_are_named(values, words):
    with pytest.raises(UserError) as caught:
        make_config(values)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_later_values_win():
    """A flag for steps takes the place of a file's epochs, and the other way round."""
    assert merge({"epochs": 3, "lr": 1}, {"steps": 5}) == {"lr": 1, "steps": 5}
    assert merge({"steps": 3}, {"epochs": 5}) == {"epochs": 5}
    assert merge({"lr": 1}, {"lr": 2}) == {"lr": 2}


@pytest.mark.parametrize("values", [{}, {"steps": 5}, {"model": [{"type": "dense", "units": 10}], "schedule": "gpipe"}])
def test_stored_config_reads_back(tmp_path, values):
    config = make_config(values | {"out": str(tmp_path), "name": "run"})
    folder = make_run_folder(config, {})
    again = make_config(folder.config() | {"out": str(tmp_path), "name": "run"})
    assert again == config
    assert tomllib.loads((folder.path / "config.toml").read_text()) == folder.config()


@pytest.mark.parametrize(
    "values",
    [
        {"jitter": 0.1, "node_speed": "2"},
        {"node_speed": "2"},
        {"schedule": "pipedream"},
        {"chunks": 3},
        {"schedule": "pipedream", "mode": "strict"},
        {"schedule": "2bw", "clip_norm": 1.0},
        {"schedule": "pipedream", "clip_value": 1.0, "chunks": 1},
        {"schedule": "2bw", "mode": "ready", "chunks": 1},
        {"schedule": "1f1b", "clip_norm": 1.0},
        {"schedule": "auto", "mode": "strict", "chunks": 2},
        {"schedule": "interleaved", "mode": "ready", "chunks": 2},
    ],
)
def test_what_goes_together(values):
    assert make_config(values).stored().items() >= values.items()


@pytest.mark.parametrize(
    ("values", "mode", "chunks"),
    [
        ({}, "ready", 1),
        ({"mode": "strict"}, "strict", 1),
        ({"schedule": "naive"}, "strict", 1),
        ({"schedule": "naive", "mode": "ready"}, "ready", 1),
        ({"schedule": "naive", "chunks": 3}, "strict", 3),
        ({"schedule": "interleaved"}, "strict", 2),
        ({"schedule": "interleaved-zb"}, "strict", 2),
        ({"schedule": "interleaved", "chunks": 1}, "strict", 1),
        ({"schedule": "interleaved", "chunks": 4}, "strict", 4),
        ({"schedule": "interleaved", "mode": "ready"}, "ready", 1),
        ({"chunks": 3}, "ready", 3),
        ({"schedule": "auto"}, "ready", 1),
        ({"schedule": "auto", "mode": "strict"}, "strict", 1),
        ({"schedule": "2bw"}, "ready", 1),
        ({"schedule": "pipedream"}, "strict", 1),
    ],
)
def test_defaults_that_hang_together(values, mode, chunks):
    config = make_config(values)
    assert (config.effective_mode, config.effective_chunks) == (mode, chunks)


def test_names_are_never_taken_twice(tmp_path):
    """Runs without a name that start in the same second get folders of their own."""
    config = make_config({"out": str(tmp_path)})
    paths = [make_run_folder(config, {}).path for _ in range(3)]
    assert len(set(paths)) == 3
    named = make_config({"out": str(tmp_path), "name": "mine"})
    make_run_folder(named, {})
    with pytest.raises(UserError, match="not overwritten"):
        make_run_folder(named, {})


def test_launches_are_counted(tmp_path):
    folder = RunFolder(tmp_path)
    assert [folder.next_launch() for _ in range(3)] == [0, 1, 2]
    assert folder.trace(2, 7).parent.is_dir()
