"""Times layers on this machine: the cost table that partition and simulation go by. A command, imported by nothing.

Usage: python -m ringtmp bench MODEL [--rows 8,32,128] [--dtype float32]. Prints the core's peak and bandwidth, and for
each kind of layer of the model and each number of rows what F, I, W and U take, and the rates that this makes.
"""

import argparse
import sys

import numpy as np
from rich.console import Console
from rich.table import Table

from ringtmp.emulate.layer_costs import layer_costs
from ringtmp.errors import UserError
from ringtmp.kernels.compilation import prepare_kernels
from ringtmp.kernels.machine import bandwidth, peak_flops
from ringtmp.kernels.tile import simd
from ringtmp.nn.model import build_model
from ringtmp.nn.model_spec import sample_of
from ringtmp.nn.optimizers import Optimizer


def _table(spec: str, rows: list[int], dtype: str) -> None:
    shape, classes, is_text = sample_of(spec)
    model = build_model(spec, "auto", shape, "classes", classes, shape[0] if is_text else 1, is_text)
    prepare_kernels(dtype, model.families)
    flops, bytes_per_s = peak_flops(dtype), bandwidth()
    vectors = simd()
    processor = f"{vectors['cpu']}, {vectors['vector_bits']} bits"
    title = f"{processor}, {dtype}: {flops / 1e9:.0f} GFLOP/s, {bytes_per_s / 1e9:.0f} GB/s"
    table = Table(title=title, title_justify="left")
    for column in ("layer", "rows", "F us", "I us", "W us", "U us", "GFLOP/s", "GB/s", "of the floor"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for count in rows:
        costs = layer_costs(model, count, np.dtype(dtype), Optimizer("adamw"), fresh=True)
        for index, cost in enumerate(costs):
            if index > 1 and model.layers[index] == model.layers[index - 1]:  # the first has no input gradient
                continue
            floor = max(cost.flops / flops, cost.traffic / bytes_per_s)
            times = (cost.forward, cost.backward_input, cost.backward_weight, cost.update)
            table.add_row(
                model.layer_name(index),
                str(count),
                *(f"{1e6 * seconds:,.1f}" for seconds in times),
                f"{cost.flops / cost.seconds / 1e9:.1f}",
                f"{cost.traffic / cost.seconds / 1e9:.1f}",
                f"{floor / cost.seconds:.0%}",
            )
    Console(width=120).print(table)


def main(argv: list[str]) -> int:
    """Run the command with the words `argv`, print its table, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ringtmp bench", description=__doc__.split("\n")[0])
    parser.add_argument("model", help="short form, as --model of ringtmp.train takes it")
    parser.add_argument("--rows", default="8,32,128", help="samples of a micro-batch [8,32,128]")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"], help="[float32]")
    options = parser.parse_args(argv)
    try:
        rows = [int(part) for part in options.rows.split(",")]
        if min(rows) < 1:
            raise ValueError
    except ValueError:
        print(f"ringtmp: rows: expected whole numbers above 0, as in 8,32, got {options.rows!r}", file=sys.stderr)
        return 2
    try:
        _table(options.model, rows, options.dtype)
    except UserError as error:
        print(f"ringtmp: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
