"""What every benchmark shares: fair surroundings, alternating pairs, one table, one file of numbers."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ringtmp.trace.recorder import environment

ROOT = Path(__file__).resolve().parents[2]
MPIRUN = os.environ.get("MPIRUN") or str(Path(sys.executable).parent / "mpirun")
_HELD_BACK = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # hold OpenBLAS below what the processor can do


def fair_environment() -> dict[str, str]:
    """This environment without what holds a BLAS back, with one thread for every library; for us and for peers."""
    env = {key: value for key, value in os.environ.items() if key not in _HELD_BACK}
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    return env | dict.fromkeys(threads, "1")


def run_json(module: str, settings: dict[str, Any], ranks: int = 0) -> dict[str, Any]:
    """Run `python -m module SETTINGS` (on `ranks` ranks if above 0) and return the JSON of its last line."""
    launcher = [MPIRUN, "-n", str(ranks)] if ranks else []
    words = [*launcher, sys.executable, "-m", module, json.dumps(settings)]
    done = subprocess.run(words, cwd=ROOT, env=fair_environment(), capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def alternate(ours: Callable[[], float], peer: Callable[[], float], pairs: int) -> tuple[list[float], list[float]]:
    """Measure both `pairs` times by turns, the order changing from pair to pair."""
    values: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs):
        for which in (0, 1) if pair % 2 == 0 else (1, 0):
            values[which].append((ours, peer)[which]())
    return values


def compared(
    case: str, ours: list[float], peer: list[float], unit: str, aim: float | None, less_is_better: bool = False
) -> dict[str, Any]:
    """A row of the table: medians, their ratio (more is better for us), and the quartiles of the pairs' ratios."""
    mine, theirs = np.asarray(ours), np.asarray(peer)
    ratios = theirs / mine if less_is_better else mine / theirs
    medians = float(np.median(mine)), float(np.median(theirs))
    ratio = medians[1] / medians[0] if less_is_better else medians[0] / medians[1]
    low, high = np.percentile(ratios, [25, 75])
    return {
        "case": case,
        "ours": medians[0],
        "peer": medians[1],
        "unit": unit,
        "ratio": ratio,
        "low": float(low),
        "high": float(high),
        "aim": aim,
    }


def measured(case: str, values: list[float], unit: str, aim: float | None, less_is_better: bool) -> dict[str, Any]:
    """A row without a peer: `ratio` is to the aim; `low` and `high` are the quartiles of the value itself."""
    median = float(np.median(values))
    low, high = np.percentile(values, [25, 75])
    ratio = None if aim is None else aim / median if less_is_better else median / aim
    return {
        "case": case,
        "ours": median,
        "peer": None,
        "unit": unit,
        "ratio": ratio,
        "low": float(low),
        "high": float(high),
        "aim": aim,
    }


def provenance(*, links: str = "shared memory", pace: str = "none", **facts: Any) -> dict[str, Any]:
    """When, where and from which commit a file of numbers comes.

    `links`: what messages go over; `pace`: GFLOP/s of emulated nodes, or none.
    """
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "commit": commit,
        **environment(),
        "mpi": mpi(),
        "links": links,
        "pace": pace,
        "load": os.getloadavg()[0],
        **facts,
    }


def mpi() -> str:
    """The MPI that runs are started with, as its mpirun tells it."""
    said = subprocess.run([MPIRUN, "--version"], capture_output=True, text=True).stdout
    mpich = re.search(r"Version:\s*(\S+)", said)
    return f"MPICH {mpich[1]}" if mpich else said.splitlines()[0] if said else "unknown"


def publish(name: str, title: str, rows: list[dict[str, Any]], **facts: Any) -> None:
    """Print the table and write results/NAME.json."""
    origin = provenance(**facts)
    path = ROOT / "jobs" / "bench" / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"provenance": origin, "rows": rows}, indent=1) + "\n")
    table = Table(title=f"{title} ({origin['cpu']}, {origin['cores']} cores)", title_justify="left")
    for column in ("case", "ours", "peer", "unit", "ratio", "quartiles", "aim"):
        table.add_column(column, justify="left" if column in ("case", "unit") else "right", no_wrap=column != "case")
    for row in rows:
        table.add_row(
            row["case"],
            _number(row["ours"]),
            _number(row["peer"]),
            row["unit"],
            _number(row["ratio"]),
            f"{_number(row['low'])} to {_number(row['high'])}",
            _number(row["aim"]),
        )
    Console(width=130).print(table)
    print(f"written to {path.relative_to(ROOT)}")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
