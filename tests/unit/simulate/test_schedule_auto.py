"""``--schedule auto``: the planner before training."""

import pytest

import ringtmp
from ringtmp.analysis import open_run
from ringtmp.errors import UserError
from ringtmp.schedule.policies import POSTED
from ringtmp.schedule.registry import plan_names


def stored(path):
    return open_run(path).config


@pytest.mark.parametrize(
    "settings",
    [
        {"micro_batches": 4, "node_speed": "5"},
        {"micro_batches": 4},
        {"node_speed": "5"},
        {"node_speed": "5", "mode": "strict"},
        {"node_speed": "5", "mode": "ready", "chunks": 2},
        {"node_speed": "5", "layer_split": "2,1"},
        {"node_speed": "5", "in_flight": 2},
        {"node_speed": "5", "mode": "ready", "ahead": 2.5, "w_group": 2},
    ],
)
def test_auto(tmp_path, settings):
    """It is resolved into plain settings before anything else, which are stored; the weights are the same bits."""
    job = {
        "data": "digits",
        "model": "mlp:64-16x2-10",
        "batch_size": 16,
        "steps": 3,
        "eval_every": 0,
        "progress": False,
    }
    result = ringtmp.train(**job, **settings, schedule="auto", out=str(tmp_path), name="auto")
    config = stored(tmp_path / "auto")
    assert config["mode"] in ("ready", "strict")
    assert config.get("schedule", "none") in ("none", *plan_names())
    assert ("schedule" in config) == (config["mode"] == "strict")
    assert ("w_group" in config) == (config["mode"] == "ready")
    for key, value in settings.items():
        assert config[key] == value
    if "layer_split" in settings:
        assert config["chunks"] == 2
    elif "chunks" not in settings:
        assert config["chunks"] in (1, 2, 3)
    attributes = open_run(tmp_path / "auto").ranks().iloc[0]
    assert (attributes["mode"], attributes["chunks"]) == (config["mode"], config["chunks"])
    plain = ringtmp.train(**job)
    assert result.sha256 == plain.sha256
    told = {key: config[key] for key in ("mode", "schedule", "chunks", "micro_batches", "w_group") if key in config}
    assert (
        ringtmp.train(**job, **{**told, **{k: v for k, v in settings.items() if k == "layer_split"}}).sha256
        == plain.sha256
    )


def test_auto_that_does_not_fit():
    with pytest.raises(UserError, match="activation_memory: the leanest way"):
        ringtmp.train(
            data="digits",
            model="mlp:64-16x2-10",
            schedule="auto",
            activation_memory="100B",
            node_speed="5",
            progress=False,
        )


def test_auto_says_what_it_chose(capsys):
    ringtmp.train(data="digits", model="mlp:64-16x2-10", schedule="auto", node_speed="5", steps=1, micro_batches=2)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("auto: "))
    assert "2 micro-batches" in line
    assert "ways tried)" in line
    assert POSTED == 2
