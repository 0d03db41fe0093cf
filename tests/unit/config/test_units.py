"""Sizes, times and rates as people write them."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringtmp.config.units import parse_bytes, parse_rate, parse_seconds, show_bytes, show_seconds
from ringtmp.errors import UserError

PARSERS = {parse_bytes: "size", parse_seconds: "time", parse_rate: "rate"}
SIZES = {
    "B": 1,
    "kB": 1e3,
    "KB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "TB": 1e12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "": 1,
}
TIMES = {"s": 1, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "": 1}
RATES = {f"{unit}/s": size for unit, size in SIZES.items() if unit} | {
    "": 1,
    "kbit/s": 125,
    "Mbit/s": 125e3,
    "Gbit/s": 125e6,
}
UNITS = {parse_bytes: SIZES, parse_seconds: TIMES, parse_rate: RATES}


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_bytes, "512MiB", 512 * 2**20),
        (parse_bytes, "2GB", 2 * 10**9),
        (parse_bytes, "1.5 KiB", 1536),
        (parse_bytes, " 7 ", 7),
        (parse_bytes, "1e3kB", 10**6),
        (parse_bytes, "3.B", 3),
        (parse_bytes, "1.9", 1),
        (parse_seconds, "20us", 20e-6),
        (parse_seconds, "1.5ms", 1.5e-3),
        (parse_seconds, "3", 3.0),
        (parse_seconds, "0", 0.0),
        (parse_seconds, "0ns", 0.0),
        (parse_seconds, "2.5e-7s", 2.5e-7),
        (parse_rate, "1.25GB/s", 1.25e9),
        (parse_rate, "100Mbit/s", 12.5e6),
        (parse_rate, "10 Gbit/s", 1.25e9),
        (parse_rate, "1MiB/s", 2.0**20),
        (parse_rate, "5e8", 5e8),
    ],
)
def test_by_hand(parse, text, value):
    assert parse(text, "key") == pytest.approx(value, rel=1e-15)


@given(st.data(), st.sampled_from(list(PARSERS)), st.floats(1, 1e6))
def test_number_times_unit(data, parse, number):
    """Whatever the number, spaces and unit."""
    units = UNITS[parse]
    unit = data.draw(st.sampled_from(list(units)))
    gap = data.draw(st.sampled_from(["", " ", "  "]))
    form = data.draw(st.sampled_from(["{:.6f}", "{:.3e}", "{:.0f}"]))
    written = form.format(number)
    want = float(written) * units[unit]
    got = parse(f"{gap}{written}{gap}{unit}{gap}", "key")
    assert got == (int(want) if parse is parse_bytes else pytest.approx(want, rel=1e-12))
    assert isinstance(got, int) == (parse is parse_bytes)


WRONG = [
    "",
    " ",
    "-1",
    "-1s",
    "+1",
    "much",
    "MB",
    "1 2",
    "1,5",
    "0x10",
    "inf",
    "nan",
    "1e999",
    "1e",
    "e3",
    "1..2",
    ".",
    "1/s/s",
    "1\n2",
    "1Mb",
    "3 parsecs",
    "0 parsecs",
    "0q",
    "1 MBs",
    "1mib",
]
FOREIGN = {
    parse_bytes: ["1s", "1GB/s", "0", "0MB", "0.5", "0.2B"],
    parse_seconds: ["1MB", "1h", "1MS", "1Mbit/s"],
    parse_rate: ["1GB", "0", "0Mbit/s", "1us", "1Mbits", "0.1"],
}


@pytest.mark.parametrize(("parse", "text"), [(parse, text) for parse in PARSERS for text in [*WRONG, *FOREIGN[parse]]])
def test_wrong_texts(parse, text):
    """One line that names the key and shows the right form and what was given."""
    with pytest.raises(UserError) as caught:
        parse(text, "link_thing")
    assert re.fullmatch(rf"link_thing: expected a {PARSERS[parse]} such as .* or .*, got .*", str(caught.value))
    assert repr(text) in str(caught.value)


@given(st.sampled_from(list(PARSERS)), st.text(max_size=12))
def test_any_text(parse, text):
    """A finite number within bounds, or the one error."""
    try:
        value = parse(text, "key")
    except UserError as error:
        assert str(error).startswith("key: expected")
        assert "\n" not in str(error)
    else:
        assert (0 if parse is parse_seconds else 1) <= value < math.inf


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (1000 * 1024, "1000 KiB"),
        (1023 * 1024, "1023 KiB"),
        (2**20, "1 MiB"),
        (3.2 * 2**20, "3.2 MiB"),
        (99.94 * 2**20, "99.9 MiB"),
        (2**30, "1 GiB"),
        (2**40, "1 TiB"),
        (5000 * 2**40, "5000 TiB"),
    ],
)
def test_shown_sizes(count, text):
    assert show_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 us"),
        (20e-6, "20 us"),
        (1e-9, "0.001 us"),
        (999e-6, "999 us"),
        (1e-3, "1 ms"),
        (4.12e-3, "4.12 ms"),
        (0.9999, "1000 ms"),
        (1, "1 s"),
        (72.345, "72.3 s"),
        (86400, "86400 s"),
    ],
)
def test_shown_times(seconds, text):
    assert show_seconds(seconds) == text


@given(st.floats(1, 1e15))
def test_what_is_shown_reads_back(count):
    """To half a percent (three digits, at least 1.00), and without an exponent."""
    text = show_bytes(count)
    assert "e" not in text
    assert parse_bytes(text, "key") == pytest.approx(count, rel=0.006, abs=1)
    seconds = count / 1e9
    assert "e" not in show_seconds(seconds)
    assert parse_seconds(show_seconds(seconds), "key") == pytest.approx(seconds, rel=0.006, abs=1e-12)
