"""Ways to train, the cases that they share, and the turns in which they run."""

import subprocess

import pytest

from ringtmp.jobs.lib.case import Case, chain_on_nodes
from ringtmp.jobs.lib.launch import LaunchFailed, rounds, steps_for
from ringtmp.jobs.lib.ways import WAYS, by_label, chosen, colour_of, rings_of, several_servers

CASE = Case("small", 4, 32, 8, 16, 64, "0.5", message_size="32KiB")


def test_each_way_has_one_label_and_one_colour():
    assert len({way.label for way in WAYS.values()}) == len({way.colour for way in WAYS.values()}) == len(WAYS)
    for way in WAYS.values():
        assert by_label(way.label) is way and colour_of(way.label) == way.colour
    assert list(chosen("ring", "bsp")) == ["ring", "server bsp"]


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("ring auto", "ring"),
        ("ring, recomputation", "ring"),
        ("ring PipeDream m=1", "pipedream-1"),
        ("server ssp 3 measured", "ssp"),
        ("2 servers bsp", "servers"),
        ("p/8 servers bsp", "servers"),
        ("4 rings of 2", "rings"),
        ("PyTorch DDP in 8", "ddp"),
    ],
)
def test_variants_belong_to_their_way(label, name):
    assert by_label(label) is WAYS[name]


def test_an_unknown_label_is_an_error():
    with pytest.raises(KeyError, match="no way has the label 'rung'"):
        by_label("rung")


def test_variants_keep_what_their_way_has():
    auto = WAYS["ssp"].variant("auto", batch_split="measured")
    assert (auto.label, auto.colour, auto.serves) == ("server ssp 3 auto", WAYS["ssp"].colour, True)
    assert auto.flags == ("--consistency", "ssp", "--staleness", "3", "--batch-split", "measured")
    assert several_servers(2).settings == {"consistency": "bsp", "servers": 2}
    assert (rings_of(2, 4).label, rings_of(2, 4).settings) == ("2 rings of 4", {"rings": 2})
    assert [WAYS[name].module for name in ("ring", "asp")] == ["ringtmp.train", "ringtmp.ps.train"]


def test_settings_of_a_case():
    ssp = CASE.run(WAYS["ssp"].variant("x", lr=0.5), 20, 3, lr=0.25)
    assert (ssp["trainer"], ssp["skip"]) == ("ps", 3)
    assert ssp["train"] == {
        "model": "mlp:32-32x8",
        "batch_size": 16,
        "optimizer": "momentum",
        "data": "synthetic:samples=64,features=32,classes=32",
        "lr": 0.25,
        "steps": 20,
        "eval_every": 0,
        "test_fraction": 0.01,
        "checkpoint_every": 0,
        "node_speed": "0.5",
        "jitter": 0.0,
        "message_size": "32KiB",
        "consistency": "ssp",
        "staleness": 3,
    }
    assert sum(layer.count for layer in CASE.model().layers) == CASE.parameters


def test_courses_of_nodes_are_scaled_to_their_speed():
    """12 layers of 32 x 32 for 4 samples in 2 ms are 0.049152 GFLOP/s."""
    case = chain_on_nodes("x", ("1", "0.5", "1@24:0.25"))
    assert case.node_speed == "0.049152,0.024576,0.049152@24:0.012288"
    assert (case.ranks, case.layers, case.batch, case.samples) == (3, 36, 24, 96)


def test_every_other_round_goes_backwards():
    seen = []

    def run(some):
        seen.append(some)
        return [each * 10 for each in some]

    found = list(rounds({"a": 1, "b": 2}, 3, run))
    assert seen == [[1, 2], [2, 1], [1, 2]]
    assert found == [(number, {"a": 10, "b": 20}) for number in range(3)]
    assert [*found[1][1]] == ["a", "b"]


@pytest.mark.parametrize(("step", "steps"), [(0.1, 3 + 10), (10.0, 3 + 5), (1e-6, 3 + 30)])
def test_steps_last_about_as_long_as_asked(step, steps):
    assert steps_for(step, 1.0, 3, 5, 30) == steps


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("REFUSED memory_limit: too much\nValueError: x", "memory_limit: too much"),
        ("a\nMemoryError: no memory\nb", "MemoryError: no memory"),
        ("gone", "exit status 9"),
    ],
)
def test_why_a_launch_failed(text, reason):
    assert LaunchFailed(["mpirun"], subprocess.CompletedProcess([], 9, text, "")).reason == reason
