"""The command `ringtmp evaluate`."""

import click

from ringtmp.commands._checkpoint import checkpoint_argument
from ringtmp.config.click_command import Command, option

HELP = "Print loss and score of a trained network, on its own or other samples."
EXAMPLES = """
ringtmp evaluate runs/first
ringtmp evaluate runs/first --split train
"""


@click.command("evaluate", cls=Command, help=HELP, short_help=HELP.rstrip("."), examples=EXAMPLES)
@checkpoint_argument
@option("--data", default="", help="other data of the same kind, in the form that --data of training takes")
@option("--split", type=click.Choice(["test", "train"]), default="test", help="samples to evaluate")
def command(checkpoint: str, data: str, split: str) -> None:
    from ringtmp.run.inference import TrainedNetwork

    net = TrainedNetwork(checkpoint)
    found = net.evaluate(net.data(data), split)
    kind = f"accuracy {found.score:.2%}" if net.is_classes else f"R2 {found.score:.4f}"
    what = f"{data or net.info.name}, {found.samples:,} {split} samples"
    click.echo(f"{checkpoint}, step {net.step}, on {what}: loss {found.loss:.6g}, {kind}")
