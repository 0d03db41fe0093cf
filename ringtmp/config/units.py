"""Sizes, times and rates with units: 512MiB, 20us, 1.25GB/s, 100Mbit/s."""

import math
import re

from ringtmp.errors import UserError

_BYTES = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "": 1,
}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "": 1.0}
_RATES = (
    {f"{unit}/s": float(size) for unit, size in _BYTES.items() if unit}
    | {"": 1.0}
    | {
        "kbit/s": 125.0,
        "Mbit/s": 125e3,
        "Gbit/s": 125e6,
    }
)


def parse_bytes(text: str, key: str) -> int:
    """Bytes of a size `text` such as 512MiB or 2GB. Raises `UserError` that names `key`."""
    return int(_parse(text, key, _BYTES, "a size such as 512MiB or 2GB", least=1.0))


def parse_seconds(text: str, key: str) -> float:
    """Seconds of a time `text` such as 20us or 1.5ms. Raises `UserError` that names `key`."""
    return _parse(text, key, _SECONDS, "a time such as 20us or 1.5ms", least=0.0)


def parse_rate(text: str, key: str) -> float:
    """Bytes per second of a rate `text` such as 1.25GB/s or 100Mbit/s. Raises `UserError` that names `key`."""
    return _parse(text, key, _RATES, "a rate such as 1.25GB/s or 100Mbit/s", least=1.0)


def _parse(text: str, key: str, units: dict[str, float] | dict[str, int], expected: str, least: float) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*([A-Za-z/]*)\s*", text)
    value = float(match[1]) * units[match[2]] if match and match[2] in units else -1.0
    if not least <= value < math.inf:
        raise UserError(f"{key}: expected {expected}, got {text!r}")
    return value


def show_bytes(count: float) -> str:
    """`count` bytes as text in a suitable unit: 3.2 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{_short(count)} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1024
    return f"{_short(count)} TiB"


def show_seconds(seconds: float) -> str:
    """`seconds` as text in a suitable unit: 4.1 ms."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{_short(seconds / size)} {unit}"
    return f"{_short(seconds * 1e6)} us"


def _short(value: float) -> str:
    """Three significant digits, or all digits before the decimal point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
