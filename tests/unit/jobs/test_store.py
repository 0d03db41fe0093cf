"""Results of experiments: what is written comes back, and tables as Markdown has them."""

from math import inf, nan

import h5py
import pytest
from rich.table import Table

from ringtmp.jobs.lib.page import Page, markdown
from ringtmp.jobs.lib.store import places, plain, publish, read, write

TABLE = {
    "provenance": {"commit": "abc", "cores": 2, "parts": {"a": [1, 2.5, None]}},
    "rows": [
        {"way": "ring", "nodes": 4, "rate": 1.23456789, "quartiles": [1, 2, 3], "why": None},
        {"way": "a/b: c", "nodes": 8, "rate": 2.0, "quartiles": [], "more": True},
    ],
    "empty": [],
    "notes": ["x", "y"],
    "number": 3,
}


def test_what_is_written_comes_back(tmp_path):
    path = tmp_path / "deep" / "results.h5"
    write(TABLE, path)
    assert read(path) == plain(TABLE)
    assert [*path.parent.iterdir()] == [path]
    with h5py.File(path) as file:  # numbers are numbers to others
        assert file["rows/01 nodes"][()].tolist() == [4, 8]
        assert file["rows/02 rate"].dtype.kind == "f"


def test_what_is_not_finite_is_nothing(tmp_path):
    write({"rows": [{"a": inf}, {"a": nan}, {"a": 1.0}]}, tmp_path / "x.h5")
    assert [row["a"] for row in read(tmp_path / "x.h5")["rows"]] == [None, None, 1.0]


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "results.h5"
    write(TABLE, path)
    with pytest.raises(TypeError):
        write({"rows": [{"a": {1, 2}}]}, path)
    assert read(path) == plain(TABLE)
    assert [*tmp_path.iterdir()] == [path]


def test_markdown_and_publish(tmp_path, capsys):
    table = Table("way", title="What [bold]came[/bold]")
    table.add_column("rate", justify="right")
    table.add_row("a|b", "[red]1.5[/red]")
    assert markdown(table) == "**What came**\n\n| way | rate |\n| --- | --: |\n| a\\|b | 1.5 |\n"
    page = Page(80)
    page.print(table)
    publish("thing", str(tmp_path), {"rows": []}, page, lambda table, path: path.write_text("drawn"))
    assert (tmp_path / "thing.md").read_text() == markdown(table)
    assert places("thing", str(tmp_path))[1].read_text() == "drawn"
    assert "written to" in capsys.readouterr().out
