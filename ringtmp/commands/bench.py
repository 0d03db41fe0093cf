"""The command `ringtmp bench`: the cost table that partition and simulation go by."""

import click

from ringtmp.config.click_command import Command, argument, option
from ringtmp.errors import UserError

HELP = """Time the layers of a network on this machine.

Prints the core's peak and bandwidth, and for each kind of layer and each number of rows what F (forward), I (input
gradient), W (weight gradient) and U (update) take, and the rates that follow."""
EXAMPLES = "ringtmp bench mlp:1024-1024x3-10 --rows 8,256"


@click.command(
    "bench", cls=Command, help=HELP, short_help="Time the layers of a network on this machine", examples=EXAMPLES
)
@argument("model", help="short form, such as --model of ringtmp train takes")
@option("--rows", default="8,32,128", help="samples of a micro-batch, several with commas")
@option("--dtype", default="float32", type=click.Choice(["float32", "float64"]), help="of weights and activations")
def command(model: str, rows: str, dtype: str) -> None:
    try:
        counts = [int(part) for part in rows.split(",")]
        if min(counts) < 1:
            raise ValueError
    except ValueError:
        raise UserError(f"rows: expected whole numbers above 0, as in 8,32, got {rows!r}") from None
    show_costs(model, counts, dtype)


def show_costs(spec: str, rows: list[int], dtype: str) -> None:
    """Print the cost table of a network.

    Parameters
    ----------
    spec : str
        The network, in the form of `--model`.
    rows : list of int
        Samples of a micro-batch, each from 1.
    dtype : {"float32", "float64"}
        Of weights and activations.

    Raises
    ------
    UserError
        `spec` is no network.
    """
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from ringtmp.emulate.layer_costs import layer_costs
    from ringtmp.kernels.compilation import prepare_kernels
    from ringtmp.kernels.machine import bandwidth, peak_flops
    from ringtmp.kernels.tile import simd
    from ringtmp.nn.model import build_model
    from ringtmp.nn.model_spec import sample_of
    from ringtmp.nn.optimizers import Optimizer

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
