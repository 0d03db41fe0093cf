"""Texts, as samples for a model of their characters."""

from pathlib import Path

import numpy as np

from ringtmp.data.registry import Request, Source, data_format
from ringtmp.errors import UserError


@data_format("text:FILE", prefix="text:")
def open_text(request: Request) -> Source:
    """Open a text as windows of `context` characters, one after the other.

    The label of each place is the character that follows. The test set is the end of the text. Tokens number the
    characters that occur, in the order of their code points.
    """
    spec, test_fraction, context = request
    path, context = _parse(spec, context)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a text in UTF-8: {error}") from None
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    alphabet, tokens = np.unique(codes, return_inverse=True)
    count = (len(tokens) - 1) // context
    held_out = round(count * test_fraction)
    if not 0 < held_out < count or len(alphabet) < 2:
        raise UserError(
            f"{path}: {len(tokens)} characters ({len(alphabet)} different) are too few for samples of {context} and a "
            f"test set of {test_fraction:.0%}"
        )
    x = tokens[: count * context].reshape(count, context).astype(np.int64)
    y = tokens[1 : count * context + 1].reshape(count, context).astype(np.int64)
    cut = count - held_out
    return Source(spec, x[:cut], y[:cut], x[cut:], y[cut:], alphabet="".join(map(chr, alphabet)))


def _parse(spec: str, context: int) -> tuple[Path, int]:
    """The file of a text, and the characters of a sample, which the setting or the model states."""
    name, _, option = spec.removeprefix("text:").partition(",")
    if option:
        key, _, value = option.partition("=")
        if key != "context" or not value.isdecimal() or int(value) < 1:
            raise UserError(f"data: {spec}: expected text:FILE or text:FILE,context=128")
        if context and context != int(value):
            raise UserError(f"data: {spec}: context {value} differs from the model's {context}")
        context = int(value)
    if not context:
        raise UserError(f"data: {spec}: how long is a sample? Give a gpt: model, or text:FILE,context=128")
    if context < 2:
        raise UserError(f"data: {spec}: expected a context of at least 2 characters, got {context}")
    return Path(name), context
