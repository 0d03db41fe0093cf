"""Open the data set and build the model that a configuration names."""

from typing import Any

import numpy as np

from ringtmp.config.schema import RunConfig
from ringtmp.config.toml import read_toml
from ringtmp.data.dataset import DataInfo, DataSet, open_data
from ringtmp.errors import UserError
from ringtmp.nn.layer import Array
from ringtmp.nn.layers.sliced import cut
from ringtmp.nn.model import Model, build_model
from ringtmp.nn.model_spec import gpt_options


def build_run_model(config: RunConfig, info: DataInfo) -> Model:
    """Build the model of a run for its data, cut into `--slices`.

    Parameters
    ----------
    config : RunConfig
        Configuration of the run.
    info : DataInfo
        Facts on the data.

    Raises
    ------
    UserError
        Model and data do not fit.
    """

    def build(spec: str | list[dict[str, Any]]) -> Model:
        return build_model(
            spec, config.loss, info.sample_shape, info.target, info.outputs, info.labels, bool(info.alphabet)
        )

    model = build(config.model)
    return build(cut(model.layers, config.slices)) if config.slices > 1 else model


def open_run_data(config: RunConfig, arrays: tuple[Array, ...] | None, like: DataInfo | None) -> DataSet:
    """Open and check the data of a run.

    Parameters
    ----------
    config : RunConfig
        Configuration of the run.
    arrays : tuple of array or None
        Data given from Python instead of `config.data`.
    like : DataInfo or None
        The data of the run that is resumed: these must be the same, and its normalisation is used.

    Raises
    ------
    UserError
        The data cannot be read, or are not those of `like`.
    """
    return open_data(
        arrays or config.data,
        dtype=np.dtype(config.dtype),
        normalise=config.normalise,
        test_fraction=config.test_fraction,
        context=_context(config.model),
        like=like,
    )


def _context(model: str | list[dict[str, Any]]) -> int:
    """Characters of a sample of text that `model` states; 0: the data must state it."""
    if isinstance(model, str):
        return gpt_options(model)["context"] if model.startswith("gpt:") else 0
    shape = model[0].get("shape") if model and isinstance(model[0], dict) else None
    return shape[0] if isinstance(shape, list) and len(shape) == 1 and isinstance(shape[0], int) else 0


def read_model_file(path: str) -> list[dict[str, Any]]:
    """Read the layer tables of the TOML file `path`. Raises `UserError` if it holds anything else."""
    tables = read_toml(path, "model")
    if set(tables) != {"layers"} or not isinstance(tables["layers"], list):
        raise UserError(
            f"model: {path}: expected [[layers]] tables and nothing else, got {', '.join(tables) or 'nothing'}"
        )
    return tables["layers"]
