"""Sizes in words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpage.errors import InvalidValue
from alpage.units import GB, GiB, KiB, MiB, TiB, format_bytes, parse_bytes

SIZES = {
    "2GiB": 2 * GiB,
    "2 gib": 2 * GiB,
    "1.5 MiB": 3 * MiB // 2,
    "500MB": 500_000_000,
    " 3 kB ": 3_000,
    "0.5TiB": TiB // 2,
    "17": 17,
    "17b": 17,
    17: 17,
}


@pytest.mark.parametrize(("text", "num_bytes"), SIZES.items())
def test_parse(text, num_bytes):
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize(
    "text",
    [
        "9" * 400,
        "9" * 5000,
        True,
        b"2GiB",
        "",
        "GiB",
        "2 GiB free",
        "-1GiB",
        "0",
        0,
        -4,
        "1e9",
        "2 parsecs",
        "nan",
        "inf",
        "0.1b",
    ],
)
def test_refusal_names_the_field(text):
    with pytest.raises(InvalidValue) as raised:
        parse_bytes(text, field="kv_memory")
    assert raised.value.field == "kv_memory"
    assert raised.value.value == text


@given(st.integers(min_value=1, max_value=2**60))
def test_what_is_printed_can_be_parsed(num_bytes):
    assert parse_bytes(format_bytes(num_bytes)) == pytest.approx(num_bytes, rel=0.05)


def test_units_change_at_their_size():
    assert format_bytes(KiB - 1) == "1023 B"
    assert format_bytes(KiB) == "1.0 KiB"
    assert format_bytes(GB) == "953.7 MiB"
    assert format_bytes(2**44) == "16.0 TiB"
