"""The store of results. An experiment leaves one HDF5 file with its provenance, its tables in Markdown, and a picture.

In the HDF5 file each list of rows is a group with a data set for each column: numbers and texts in their own types,
anything else as JSON (attribute `json`). Everything else, provenance included, is JSON in one data set each.
"""

import json
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ringtmp.jobs.lib.launch import IN_CHECKOUT, ROOT
from ringtmp.jobs.lib.page import Page, benchmark_table
from ringtmp.jobs.lib.provenance import provenance
from ringtmp.storage.files import hdf5, whole

# The project's own results, in a checkout; without one they belong where the command was called.
_JOBS = ROOT / "jobs" if IN_CHECKOUT else Path.cwd() / "ringtmp-results"
_TEXT = h5py.string_dtype()


def places(name: str, out: str | None = None) -> tuple[Path, Path]:
    """Paths of the result file and the figure of experiment `name`: the project's, or both in the folder `out`."""
    if out:
        return Path(out) / f"{name}.h5", Path(out) / f"{name}.png"
    return _JOBS / "experiments" / "results" / f"{name}.h5", _JOBS / "figures" / f"{name}.png"


def plain(value: Any) -> Any:
    """`value` as JSON holds it: numbers to five digits, None for those that are not finite, lists for tuples."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if isfinite(value) else None
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def write(table: dict[str, Any], path: Path) -> None:
    """Write the results `table` to the file `path`, completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as temporary, hdf5(temporary, "w") as file:
        for key, value in plain(table).items():
            rows = isinstance(value, list) and value and all(isinstance(row, dict) for row in value)
            if rows:
                _write_rows(file.create_group(key), value)
            else:
                file.create_dataset(key, data=json.dumps(value), dtype=_TEXT)


def _write_rows(group: h5py.Group, rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    group.attrs["rows"], group.attrs["columns"] = len(rows), json.dumps(columns)
    for number, column in enumerate(columns):
        values = [row.get(column, _NONE) for row in rows]
        kinds = {type(value) for value in values}
        name = f"{number:02d} {column.replace('/', '_')}"
        if kinds in ({int}, {float}):
            group.create_dataset(name, data=np.array(values))
        elif kinds == {str}:
            group.create_dataset(name, data=values, dtype=_TEXT)
        else:
            texts = ["" if value is _NONE else json.dumps(value) for value in values]
            group.create_dataset(name, data=texts, dtype=_TEXT).attrs["json"] = True


_NONE = object()  # in a row that lacks a column


def read(path: Path) -> dict[str, Any]:
    """Read the file `path` that `write` made. Raises `OSError`."""
    with h5py.File(path, "r", locking=False) as file:
        return {
            key: _read_rows(item) if isinstance(item, h5py.Group) else json.loads(item[()])
            for key, item in file.items()
        }


def _read_rows(group: h5py.Group) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{} for _ in range(group.attrs["rows"])]
    for column, item in zip(json.loads(group.attrs["columns"]), group.values(), strict=True):
        as_json, texts = "json" in item.attrs, item.dtype.kind == "O"
        for row, value in zip(rows, (item.asstr() if texts else item)[()].tolist(), strict=True):
            if not as_json:
                row[column] = value
            elif value:
                row[column] = json.loads(value)
    return rows


def renewed(cases: list[dict[str, Any]], case: dict[str, Any], key: Callable[[dict[str, Any]], Any]) -> list[Any]:
    """`cases` with `case` in place of the one with the same key, sorted by `key`, a function of a case."""
    return sorted([*(each for each in cases if key(each) != key(case)), case], key=key)


def sources(table: dict[str, Any]) -> list[dict[str, Any]]:
    """Provenance of each part of the results `table`: of the whole, of its parts by name, of its cases."""
    stated = table.get("provenance") or {}
    parts = [stated] if "commit" in stated else [each for each in stated.values() if isinstance(each, dict)]
    return [each["provenance"] for each in table.get("cases", []) if "provenance" in each] + parts


def publish(
    name: str, out: str | None, table: dict[str, Any], page: Page, draw: Callable[[dict[str, Any], Path], None] | None
) -> None:
    """Write the results of an experiment, its tables, and its figure if it has one.

    Parameters
    ----------
    name : str
        Name of the files.
    out : str or None
        Folder; None: the project's.
    table : dict
        The results.
    page : Page
        Holds the tables that have been shown.
    draw : callable or None
        Draws the figure of `table` into a path.
    """
    result, figure = places(name, out)
    write(table, result)
    result.with_suffix(".md").write_text(page.markdown())
    if draw:
        figure.parent.mkdir(parents=True, exist_ok=True)
        draw(table, figure)
    print(f"written to {result}" + (f" and {figure}" if draw else ""))


def publish_benchmark(
    name: str, rows: list[dict[str, Any]], title: str = "", keep: bool = True, **facts: Any
) -> dict[str, Any]:
    """Print the table of a benchmark and write jobs/bench/results/NAME.json; return its provenance.

    Parameters
    ----------
    name : str
        Name of the file.
    rows : list of dict
        Rows, which `ringtmp.jobs.lib.compare.compared` and `measured` make if a `title` is given.
    title : str
        Title of the table; empty: none is printed.
    keep : bool
        Whether to write the file.
    **facts
        Further entries of its provenance.
    """
    origin = provenance(**facts)
    if title:
        print_table = benchmark_table(f"{title} ({origin['cpu']}, {origin['cores']} cores)", rows)
        Page(130).print(print_table)
    if keep:
        path = _JOBS / "bench" / "results" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"provenance": origin, "rows": rows}, indent=1) + "\n")
        print(f"written to {path.relative_to(_JOBS.parent)}")
    return origin
