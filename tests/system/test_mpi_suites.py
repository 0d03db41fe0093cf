"""The tests of tests/mpi under mpirun, on each number of ranks; and that they really ran."""

import re

import pytest
from launching import ROOT

ALONE = pytest.mark.alone  # they fill all cores; on one rank there is room for another test


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "ranks", [1, *(pytest.param(n, marks=[ALONE, *[pytest.mark.soak] * (n == 4)]) for n in (2, 3, 4, 5, 8))]
)
def test_suite(launch, ranks, tmp_path):
    where = ["--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), f"--basetemp={tmp_path}/base"]
    settings = ["--with-mpi", "-x", "-q", "-p", "no:cacheprovider", *where]
    # On 4 ranks the numbers of all schedules alone: what else depends on the ranks is seen on the other five.
    what = ROOT / "tests/mpi" / ("test_schedules.py::test_same_numbers" if ranks == 4 else "")
    done = launch(ranks, "-m", "mpi4py", "-m", "pytest", *settings, str(what), timeout=880)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    passed = [int(number) for number in re.findall(r"(\d+) passed", done.stdout)]  # lines of ranks may mix
    assert len(passed) == ranks, done.stdout[-3000:]
    assert (
        min(passed) == max(passed) >= {1: 200, 2: 330, 3: 210, 4: 36}.get(ranks, 80)
    )  # all, or a chessboard's squares, or half of them
    assert "skipped" not in done.stdout
    print(f"{passed[0]} tests passed on {ranks} ranks")
