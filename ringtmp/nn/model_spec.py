"""Short forms of models, the values of --model: `mlp:64-256x10-10`, `cnn:28x28-32c3-p2-64c3-p2-128-10`, `gpt:...`."""

import re
from typing import Any

from ringtmp.errors import UserError
from ringtmp.kernels.activations import ACTIVATIONS

FORMS = {
    "mlp": "mlp:IN-WIDTH-OUT or mlp:IN-WIDTHxCOUNT-OUT[,activation=relu]",
    "cnn": "cnn:HEIGHTxWIDTH[xCHANNELS]-32c3-p2-128-10[,activation=relu] (32c3: 32 filters of 3 x 3; p2, a2: max and "
    "mean pooling; a number: a dense layer)",
    "gpt": "gpt:layers=8,width=256,heads=8,context=128[,dropout=0.1]",
}
_MOST = 10**5  # layers of a short form
_GPT = {"layers": 8, "width": 256, "heads": 8, "context": 128, "dropout": 0.0}


def tables_of(text: str, outputs: int) -> tuple[list[dict[str, Any]], tuple[int, ...] | None]:
    """Layers of a short form, and the shape of a sample that it names (None: it names none).

    Parameters
    ----------
    text : str
        The short form.
    outputs : int
        Classes of the data: for a `gpt` the number of tokens, which it reads and predicts.

    Raises
    ------
    UserError
        The form is wrong; the message shows the right one.
    """
    family, _, rest = text.partition(":")
    if family not in FORMS:
        raise UserError(f"model: expected {'; or '.join(FORMS.values())}; or a TOML file, got {text!r}")
    if family == "gpt":
        return _gpt(gpt_options(text), outputs), None
    body, *options = rest.split(",")
    activation = "relu"
    for option in options:
        key, _, value = option.partition("=")
        if key != "activation" or value not in ACTIVATIONS:
            raise UserError(f"model: option {option!r}: expected activation={'|'.join(ACTIVATIONS)}")
        activation = value
    return _mlp(body, text, activation) if family == "mlp" else _cnn(body, text, activation)


def sample_of(text: str) -> tuple[tuple[int, ...], int, bool]:
    """Sample shape, number of classes, and whether samples are text, of some data that fits the short form `text`."""
    if text.startswith("gpt:"):
        return (gpt_options(text)["context"],), 65, True
    return tables_of(text, 2)[1] or (), 2, False


def _mlp(body: str, text: str, activation: str) -> tuple[list[dict[str, Any]], tuple[int, ...]]:
    widths: list[int] = []
    for part in body.split("-"):
        match = re.fullmatch(r"([1-9]\d{0,8})(?:x([1-9]\d{0,8}))?", part)
        if not match:
            raise UserError(f"model: size {part!r} in {text!r}: expected {FORMS['mlp']}")
        if int(match[2] or 1) > _MOST:
            raise UserError(f"model: {part!r} in {text!r}: expected at most {_MOST} layers")
        widths += [int(match[1])] * int(match[2] or 1)
    if len(widths) < 2:
        raise UserError(f"model: {text!r} has no layer: expected {FORMS['mlp']}")
    tables = [{"type": "dense", "units": width, "activation": activation} for width in widths[1:]]
    tables[-1]["activation"] = "linear"
    return tables, (widths[0],)


def _cnn(body: str, text: str, activation: str) -> tuple[list[dict[str, Any]], tuple[int, ...]]:
    image, *parts = body.split("-")
    match = re.fullmatch(r"([1-9]\d{0,8})x([1-9]\d{0,8})(?:x([1-9]\d{0,8}))?", image)
    if not match or not parts:
        raise UserError(f"model: {text!r}: expected {FORMS['cnn']}")
    tables: list[dict[str, Any]] = []
    flat = False
    for part in parts:
        if filters := re.fullmatch(r"([1-9]\d{0,8})c([1-9]\d{0,8})", part):
            size = int(filters[2])
            tables.append(
                {
                    "type": "conv2d",
                    "filters": int(filters[1]),
                    "size": size,
                    "pad": (size - 1) // 2,
                    "activation": activation,
                }
            )
        elif pool := re.fullmatch(r"([pa])([1-9]\d{0,8})", part):
            tables.append({"type": "maxpool2d" if pool[1] == "p" else "avgpool2d", "size": int(pool[2])})
        elif re.fullmatch(r"[1-9]\d{0,8}", part):
            if not flat:
                tables.append({"type": "flatten"})
                flat = True
            tables.append({"type": "dense", "units": int(part), "activation": activation})
        else:
            raise UserError(f"model: {part!r} in {text!r}: expected {FORMS['cnn']}")
    if tables[-1]["type"] != "dense":
        raise UserError(f"model: {text!r} must end with a dense layer, as in {FORMS['cnn']}")
    tables[-1]["activation"] = "linear"
    if flat and any(table["type"] != "dense" for table in tables[[t["type"] for t in tables].index("flatten") + 1 :]):
        raise UserError(f"model: {text!r} has a convolution or pooling after a dense layer")
    if tables[0]["type"] == "flatten":
        tables[0]["shape"] = [int(match[1]), int(match[2]), int(match[3] or 1)]
    return tables, (int(match[1]), int(match[2]), int(match[3] or 1))


def gpt_options(text: str) -> dict[str, Any]:
    """Values of the `gpt:` form `text`, by name. Raises `UserError` if the form is wrong."""
    values = dict(_GPT)
    for part in filter(None, text.removeprefix("gpt:").split(",")):
        key, _, value = part.partition("=")
        try:
            if key not in values:
                raise ValueError
            values[key] = type(_GPT[key])(value)
        except ValueError:
            raise UserError(f"model: {part!r} in {text!r}: expected {FORMS['gpt']}") from None
        if key != "dropout" and not 1 <= values[key] <= (_MOST if key == "layers" else 10**9):
            raise UserError(f"model: {part!r} in {text!r}: {key} must be at least 1 (and layers at most {_MOST})")
    return values


def _gpt(values: dict[str, Any], tokens: int) -> list[dict[str, Any]]:
    """Embedding, pre-norm blocks, head; projections back onto the residual scaled by 1 / sqrt(2 layers)."""
    block = {
        "type": "transformer",
        "heads": values["heads"],
        "scale": (2 * values["layers"]) ** -0.5,
        "dropout": values["dropout"],
    }
    return [
        {"type": "embedding", "tokens": tokens, "width": values["width"]},
        *(dict(block) for _ in range(values["layers"])),
        {"type": "head", "units": tokens},
    ]
