"""``python -m ringtmp export runs/NAME FILE``: a trained network for other programs, as .safetensors or .onnx.

.safetensors: every parameter under `LAYER.NAME` (`000-dense.weight`), in its own shape; layers, data and normalisation
as JSON in the metadata. .onnx: the whole network, normalisation included: samples `x` [n, ...] as training took them
in, `outputs` out (logits, or values in the units of the targets), and for classes their `probabilities`.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringtmp.comm.mpi import StopRequest, run_main, tell_from_rank_0
from ringtmp.config.command_line import checkpoint_parser, new_file
from ringtmp.errors import UserError
from ringtmp.run.inference import TrainedNetwork
from ringtmp.storage.files import whole

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

ENDINGS = (".safetensors", ".onnx")
_MOST = 2_000_000_000  # bytes of an .onnx file: the format ends at 2 GB


def export(net: TrainedNetwork, path: Path) -> None:
    """Write `net` to the file `path` in the format of its ending. Raises `UserError`, `OSError`."""
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


def main(comm: "Intracomm", stop: StopRequest) -> int:
    """Export on rank 0 of `comm`; return the exit status. `stop` is not used."""

    def told() -> str:
        parser = checkpoint_parser("ringtmp export", __doc__.split(": ", 1)[1])
        parser.add_argument("out", metavar="FILE", help=f"file to write, ending in {' or '.join(ENDINGS)}")
        options = parser.parse_args(sys.argv[1:])
        out = new_file(options.out)
        net = TrainedNetwork(options.checkpoint)
        try:
            export(net, out)
        except OSError as error:
            raise UserError(f"out: cannot write {options.out}: {error.strerror or error}") from None
        return f"{net.model.parameters:,} parameters in {len(net.model.layers)} layers: written to {options.out}"

    return tell_from_rank_0(comm, told)


if __name__ == "__main__":
    run_main(main)
