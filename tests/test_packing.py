"""Numbers and texts as bytes: what is read is what was put, and a cut row is an error."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from librt.strings import BytesWriter

from tables.packing import (
    MAX_NUMBER,
    Reader,
    put,
    put_bytes,
    put_float,
    put_instant,
    put_optional,
    put_optional_instant,
    put_text,
)

numbers = st.integers(-MAX_NUMBER, MAX_NUMBER) | st.integers(-300, 300)
instants = st.integers(-(2**61), 2**61)
KINDS: dict[str, tuple[Any, Any, Any]] = {
    "number": (put, Reader.number, numbers),
    "optional": (put_optional, Reader.optional, st.none() | numbers),
    "instant": (put_instant, Reader.instant, instants),
    "optional_instant": (put_optional_instant, Reader.optional_instant, st.none() | instants),
    "float": (put_float, Reader.float, st.floats(allow_nan=False)),
    "bytes": (put_bytes, Reader.bytes, st.binary()),
    "text": (put_text, Reader.text, st.text()),
}
put_somehow = st.sampled_from(sorted(KINDS)).flatmap(
    lambda kind: st.tuples(st.just(kind), KINDS[kind][2])
)


@given(st.binary(max_size=5), st.lists(put_somehow))
def test_what_was_put_is_read_in_the_same_order(before, items):
    """Wherever it begins, and nothing is left."""
    to = BytesWriter()
    to.write(before)
    for kind, value in items:
        KINDS[kind][0](to, value)
    row = to.getvalue()
    reader = Reader(row, len(before))
    assert [KINDS[kind][1](reader) for kind, _ in items] == [value for _, value in items]
    assert reader.at == len(row)


@pytest.mark.parametrize(("number", "size"), [(0, 1), (63, 1), (-64, 1), (64, 2), (8_191, 2)])
def test_small_numbers_are_short(number, size):
    """Seven bits in a byte, one of them the sign."""
    to = BytesWriter()
    put(to, number)
    assert len(to.getvalue()) == size


@given(put_somehow.filter(lambda item: item[0] != "optional" or item[1] is not None))
def test_a_row_that_is_cut_off_is_an_error(item):
    """Whatever was in it."""
    kind, value = item
    to = BytesWriter()
    KINDS[kind][0](to, value)
    with pytest.raises((IndexError, ValueError)):
        KINDS[kind][1](Reader(to.getvalue()[:-1]))
