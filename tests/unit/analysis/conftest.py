"""A short run, and no picture left open."""

import pytest

import ringtmp
from ringtmp.analysis import open_run


@pytest.fixture(autouse=True)
def _closed():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    ringtmp.train(
        data="digits",
        model="mlp:64-16x2-10",
        steps=10,
        micro_batches=4,
        batch_size=32,
        out=str(out),
        name="a",
        progress=False,
    )
    return open_run(out / "a")
