"""Configuration: one model for flags, files and keyword arguments."""

import tomllib

import pytest

from ringtmp.errors import UserError
from ringtmp.run.cli import parse, parser
from ringtmp.run.config import RunConfig, make_config
from ringtmp.run.folder import RunFolder, make_run_folder
from ringtmp.run.job import merge

KEYS = list(RunConfig.model_fields)


def flags(*words):
    return parse(list(words), "ringtmp.train", "about")[1]


def test_every_key_is_a_flag_with_help():
    page = parser("ringtmp.train", "about").format_help()
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
        ({"batch_size": 4}, "batch_size 4 is smaller than micro_batches 8"),
        ({"epochs": 2, "steps": 3}, "epochs and steps: expected one of them"),
        ({"seed": -1}, "seed: expected greater than or equal to 0"),
        ({"model": 3}, "model: expected"),
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


def test_mode():
    assert make_config({}).effective_mode == "ready"
    assert make_config({"schedule": "naive"}).effective_mode == "strict"
    assert make_config({"schedule": "naive", "mode": "ready"}).effective_mode == "ready"


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
