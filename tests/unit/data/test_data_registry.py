"""Data formats: the registry, and one that is added from outside ringtmp."""

import numpy as np
import pytest

from ringtmp.data import registry
from ringtmp.data.registry import Request, Source, data_format
from ringtmp.data.sources import open_source
from ringtmp.errors import UserError


@pytest.fixture(autouse=True)
def own_formats():
    """Formats added by a test are forgotten after it."""
    known = list(registry.formats)
    yield
    registry.formats[:] = known


def constant(request: Request) -> Source:
    return Source(request.spec, np.ones((3, 2)), np.arange(3))


@pytest.mark.parametrize(
    ("how", "specs", "others"),
    [
        ({"name": "ones"}, ["ones"], ["ones.x", "one"]),
        ({"prefix": "ones:"}, ["ones:", "ones:a=2"], ["ones"]),
        ({"suffixes": (".one", ".1")}, ["a.one", "b/c.1"], ["a.one2", "one"]),
        ({"matches": lambda spec: spec.isupper()}, ["ABC"], ["AbC"]),
    ],
)
def test_what_a_format_matches(how, specs, others):
    data_format("ones", **how)(constant)
    for spec in specs:
        assert open_source(spec).name == spec
    for spec in others:
        with pytest.raises(UserError, match="neither a known data set"):
            open_source(spec)


def test_a_folder_is_no_file_of_that_name(tmp_path):
    (tmp_path / "a.npz").mkdir()
    with pytest.raises(UserError, match="no IDX files"):
        open_source(str(tmp_path / "a.npz"))


def test_messages_name_all_formats():
    with pytest.raises(UserError) as before:
        open_source("nothing of the kind")
    data_format("a number in words", name="seventeen")(constant)
    with pytest.raises(UserError, match="an .h5 file.*text:FILE, or a number in words"):
        open_source("nothing of the kind")
    with pytest.raises(UserError, match="did you mean seventeen"):
        open_source("sevnteen")
    for shown in ("digits", "breast-cancer", "a folder of IDX files", "a .npz file", "synthetic:samples=..."):
        assert shown in str(before.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (Source("a", np.ones((3, 2)), np.arange(4)), "3 samples but y has 4"),
        (Source("a", np.ones(3), np.arange(3)), "expected samples by features"),
        (Source("a", np.array([["x"]]), np.arange(1)), "expected numbers"),
    ],
)
def test_what_a_format_gives_is_checked(source, words):
    data_format("bad", name="bad")(lambda request: source)
    with pytest.raises(UserError, match=words):
        open_source("bad")


@pytest.mark.parametrize("error", [OSError(2, "No such file"), ValueError("not a number"), MemoryError("too large")])
def test_errors_of_a_format_become_one_line(error):
    @data_format("broken", name="broken")
    def broken(request: Request) -> Source:
        raise error

    with pytest.raises(UserError, match="data: broken: (No such file|not a number|too large)"):
        open_source("broken")


def test_an_installed_plug_in_is_imported_where_no_known_format_accepts_the_data(monkeypatch):
    monkeypatch.setattr(registry, "load_plugins", lambda: data_format("ones", name="plugged-in")(constant))
    assert open_source("synthetic:samples=4,features=2,classes=2").x.shape == (4, 2)
    assert "plugged-in" not in [each.name for each in registry.formats]
    assert open_source("plugged-in").name == "plugged-in"


def test_a_request_states_what_a_text_needs():
    asked = []
    data_format("ones", name="ones")(lambda request: asked.append(request) or constant(request))
    open_source("ones", 0.3, 7)
    assert asked == [Request("ones", 0.3, 7)]


def test_csv_from_outside(tmp_path):
    from csv_format import open_csv

    data_format("a .csv file", suffixes=(".csv",))(open_csv)  # another test may have forgotten it
    (tmp_path / "a.csv").write_text("1.5,2,0\n3,4,1\n5,6,0\n")
    source = open_source(str(tmp_path / "a.csv"))
    np.testing.assert_array_equal(source.x, [[1.5, 2], [3, 4], [5, 6]])
    assert (source.y.dtype, source.y.tolist()) == (np.int64, [0, 1, 0])
    (tmp_path / "b.csv").write_text("1,two,0\n")
    with pytest.raises(UserError, match=r"data: .*b\.csv: could not convert"):
        open_source(str(tmp_path / "b.csv"))
