"""The command `ringtmp export`: a trained network for other programs."""

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ringtmp.commands._checkpoint import checkpoint_argument
from ringtmp.commands._output import new_file, writing
from ringtmp.config.click_command import Command, argument
from ringtmp.errors import UserError

if TYPE_CHECKING:
    from ringtmp.run.inference import TrainedNetwork

HELP = """Write a trained network for other programs, as .safetensors or .onnx.

.safetensors holds every parameter under LAYER.NAME (000-dense.weight), in its own shape; layers, data and normalisation
as JSON in the metadata. .onnx holds the whole network, normalisation included: samples x [n, ...] as training took them
in, outputs out (logits, or values in the units of the targets), and for classes their probabilities."""
EXAMPLES = """
ringtmp export runs/first first.onnx
ringtmp export runs/first first.safetensors
"""
ENDINGS = (".safetensors", ".onnx")
_MOST = 2_000_000_000  # bytes of an .onnx file: the format ends at 2 GB


@click.command(
    "export", cls=Command, help=HELP, short_help="Write a trained network as .onnx or .safetensors", examples=EXAMPLES
)
@checkpoint_argument
@argument("out", metavar="FILE", help=f"file to write, ending in {' or '.join(ENDINGS)}; it must not exist")
def command(checkpoint: str, out: str) -> None:
    from ringtmp.run.inference import TrainedNetwork

    path, net = new_file(out), TrainedNetwork(checkpoint)
    with writing(path):
        export(net, path)
    click.echo(f"{net.model.parameters:,} parameters in {len(net.model.layers)} layers: written to {out}")


def export(net: "TrainedNetwork", path: Path) -> None:
    """Write `net` to the file `path` in the format of its ending. Raises `UserError`, `OSError`."""
    from ringtmp.storage.files import whole

    if path.suffix not in ENDINGS:
        raise UserError(f"out: {path}: expected a name that ends in {' or '.join(ENDINGS)}")
    with whole(path) as temporary:
        if path.suffix == ".onnx":
            onnx = _needed("onnx")
            if net.model.parameters * net.dtype.itemsize > _MOST:
                raise UserError(
                    f"out: {path}: {net.model.parameters:,} parameters are more than the 2 GB that an "
                    ".onnx file can hold; expected .safetensors"
                )
            from ringtmp.nn.onnx_export import model_of

            onnx.save(
                model_of(net.model, net.layers(), net.info.normalisation, net.info.sample_shape, net.dtype), temporary
            )
        else:
            _needed("safetensors.numpy").save_file(
                {f"{layer}.{name}": array for layer, arrays in net.layers() for name, array in arrays.items()},
                temporary,
                {"ringtmp": json.dumps({"layers": net.model.to_list(), "data": net.info.to_json(), "step": net.step})},
            )


def _needed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        missing = name.partition(".")[0]
        raise UserError(f"export: {missing} is not installed; pip install 'ringtmp[export]'") from None
