"""The tests of tests/mpi under mpirun, on each number of ranks; and that they really ran."""

import re

import pytest
from launching import ROOT

# What is run on each number of ranks. `make test` runs what depends on their number most, `make test-long`
# runs all, `make soak` what all schedules compute on 4.
SOME = ["test_same_numbers.py", "test_server_numbers.py", "test_balance.py"]
SUITES = {
    (1, "some"): [],  # on one rank there is room for another test; the others fill all cores
    (2, "some"): [pytest.mark.alone],
    (3, "some"): [pytest.mark.alone],
    (5, "some"): [pytest.mark.alone],
    (8, "some"): [pytest.mark.alone],
    (1, "all"): [pytest.mark.long],
    (2, "all"): [pytest.mark.alone, pytest.mark.long],
    (3, "all"): [pytest.mark.alone, pytest.mark.long],
    (5, "all"): [pytest.mark.alone, pytest.mark.long],
    (8, "all"): [pytest.mark.alone, pytest.mark.long],
    (4, "schedules"): [pytest.mark.alone, pytest.mark.soak],
}
FILES = {"all": [""], "some": SOME, "schedules": ["test_schedules.py::test_same_numbers"]}
LEAST = {(1, "all"): 200, (2, "all"): 330, (3, "all"): 210, (5, "all"): 80, (8, "all"): 80, (4, "schedules"): 36}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("ranks", "which"), [pytest.param(*key, marks=marks) for key, marks in SUITES.items()])
def test_suite(launch, ranks, which, tmp_path):
    where = ["--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), f"--basetemp={tmp_path}/base"]
    settings = ["--with-mpi", "-x", "-q", "-p", "no:cacheprovider", *where]
    files = [str(ROOT / "tests/mpi" / name) for name in FILES[which]]
    done = launch(ranks, "-m", "mpi4py", "-m", "pytest", *settings, *files, timeout=880)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    passed = [int(number) for number in re.findall(r"(\d+) passed", done.stdout)]  # lines of ranks may mix
    assert len(passed) == ranks, done.stdout[-3000:]
    assert min(passed) == max(passed) >= LEAST.get((ranks, which), 25)  # all, or a part (tests/mpi/conftest.py)
    assert "skipped" not in done.stdout
    print(f"{passed[0]} tests passed on {ranks} ranks")
