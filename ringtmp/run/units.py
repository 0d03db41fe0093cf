"""Sizes, times and rates as people write them: 512MiB, 20us, 1.25GB/s, 100Mbit/s."""

import re

from ringtmp.errors import UserError

_BYTES = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20,
          "GiB": 2**30, "TiB": 2**40, "": 1}  # fmt: skip
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "": 1.0}
_RATES = {f"{unit}/s": float(size) for unit, size in _BYTES.items() if unit} | {"": 1.0} | {
    "kbit/s": 125.0, "Mbit/s": 125e3, "Gbit/s": 125e6,
}  # fmt: skip


def parse_bytes(text: str, key: str) -> int:
    """Bytes of a size such as 512MiB or 2GB. Raises `UserError` that names `key`."""
    return int(_parse(text, key, _BYTES, "a size such as 512MiB or 2GB"))


def parse_seconds(text: str, key: str) -> float:
    """Seconds of a time such as 20us or 1.5ms. Raises `UserError`."""
    return _parse(text, key, _SECONDS, "a time such as 20us or 1.5ms", zero=True)


def parse_rate(text: str, key: str) -> float:
    """Bytes a second of a rate such as 1.25GB/s or 100Mbit/s. Raises `UserError`."""
    return _parse(text, key, _RATES, "a rate such as 1.25GB/s or 100Mbit/s")


def _parse(text: str, key: str, units: dict[str, float] | dict[str, int], expected: str, zero: bool = False) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*([A-Za-z/]*)\s*", text)
    value = float(match[1]) * units.get(match[2], -1.0) if match else -1.0
    if value < 0 or (value == 0 and not zero):
        raise UserError(f"{key}: expected {expected}, got {text!r}")
    return value


def show_bytes(count: float) -> str:
    """A size in the unit that suits it: 3.2 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1024
    return f"{count:.3g} TiB"


def show_seconds(seconds: float) -> str:
    """A time in the unit that suits it: 4.1 ms."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
