"""Synthetic data: `synthetic:samples=10000,features=64,classes=10`, or with `outputs=` for values."""

import math

import numpy as np

from ringtmp.data.registry import Request, Source, data_format
from ringtmp.errors import UserError

_DEFAULTS = {"samples": 10000, "features": 64, "classes": 10, "outputs": 0, "noise": 1.0, "seed": 0}


@data_format("synthetic:samples=...", prefix="synthetic:")
def open_synthetic(request: Request) -> Source:
    """Make samples: for classes around random centres, for values (`outputs` above 0) as a linear map, with noise."""
    spec, values = request.spec, _parse(request.spec)
    n, features, outputs = int(values["samples"]), int(values["features"]), int(values["outputs"])
    rng = np.random.Generator(np.random.Philox(key=np.array([values["seed"], 1], np.uint64)))
    if outputs:
        x = rng.standard_normal((n, features))
        y = x @ rng.standard_normal((features, outputs)) / math.sqrt(features)
        return Source(spec, x, y + 0.1 * values["noise"] * rng.standard_normal(y.shape))
    labels = np.arange(n) % int(values["classes"])
    centres = rng.standard_normal((int(values["classes"]), features))
    return Source(spec, centres[labels] + values["noise"] * rng.standard_normal((n, features)), labels)


def _parse(spec: str) -> dict[str, float]:
    """The numbers that the setting states, over the defaults. Raises `UserError`."""
    values = dict(_DEFAULTS)
    for part in filter(None, spec.removeprefix("synthetic:").split(",")):
        key, _, text = part.partition("=")
        if key not in values:
            raise UserError(f"data: {spec}: unknown key {key!r}; expected {', '.join(values)}")
        try:
            values[key] = type(_DEFAULTS[key])(text)
        except ValueError:
            raise UserError(f"data: {spec}: {key} must be a number, got {text!r}") from None
        lowest = 0 if key in ("seed", "noise", "outputs") else 2 if key in ("samples", "classes") else 1
        if not lowest <= values[key] < 2**63:
            raise UserError(f"data: {spec}: {key} must be at least {lowest} (and below 2^63)")
    return values
