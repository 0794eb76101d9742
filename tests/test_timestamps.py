"""RFC 3339 against the standard library, and everything that is not RFC 3339."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.timestamps import END_MS, check, iso_utc, parse

offsets = st.integers(-23 * 60 - 59, 23 * 60 + 59).map(
    lambda minutes: timezone(timedelta(minutes=minutes))
)


@given(
    st.datetimes(datetime(1970, 1, 3), datetime(9998, 12, 30), timezones=offsets)  # noqa: DTZ001
)
def test_every_instant_of_every_offset_comes_back_cut_to_milliseconds(moment):
    """What the standard library writes is read as the same instant."""
    expected = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    text = moment.isoformat()
    assert parse(text) == expected
    assert parse(text.replace("T", " ")) == expected
    assert parse(iso_utc(expected)) == expected


@pytest.mark.parametrize(
    ("text", "ts_ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t08:00:00.0019999999999+08:00", 1),
        ("1969-12-31T23:00:00.5-01:00", 500),
        ("2024-02-29T00:00:00-00:00", 1_709_164_800_000),
        ("9998-12-31T23:59:59.999999z", END_MS - 1),
    ],
)
def test_examples(text, ts_ms):
    """The edges, by hand."""
    assert parse(text) == ts_ms


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2025-04-30",
        "2025-04-30T00:00:00",
        "2025-04-30T00:00Z",
        "2025-04-30T00:00:00+0800",
        "2025-04-30T00:00:00+8:00",
        "2025-04-30T00:00:00+24:00",
        "2025-04-30T00:00:00+08:60",
        "2025-04-30T00:00:00.Z",
        "2025-04-30T00:00:00,5Z",
        "2025-04-30T24:00:00Z",
        "2025-04-30T00:00:60Z",
        "2025-02-29T00:00:00Z",
        "2025-13-01T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "1969-12-31T23:59:59.999Z",
        "1970-01-01T00:00:00+00:01",
        "9999-01-01T00:00:00Z",
        "9998-12-31T23:59:59-00:01",
        " 2025-04-30T00:00:00Z",
        "2025-04-30T00:00:00Z\n",
        "2025-04-30  00:00:00Z",
        "20250430T000000Z",
        "2025-W18-3T00:00:00Z",
        "２025-04-30T00:00:00Z",
        "-025-04-30T00:00:00Z",
        "1745942400000",
    ],
)
def test_what_is_not_a_time_with_offset_is_refused(text):
    """Among them much that Python's own parser would take."""
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert text == "" or text not in str(caught.value)


@given(st.text() | st.text("0123456789-:.TZ+ ", min_size=18, max_size=30))
def test_any_text_is_a_time_within_bounds_or_a_value_error(text):
    """Nothing else comes out."""
    try:
        ts_ms = parse(text)
    except ValueError:
        return
    assert check(ts_ms) == ts_ms


@pytest.mark.parametrize("ts_ms", [-1, END_MS, 10**30])
def test_bounds(ts_ms):
    """Integers have the same bounds as text."""
    with pytest.raises(ValueError, match="1970"):
        check(ts_ms)
