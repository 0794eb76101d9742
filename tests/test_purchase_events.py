"""Purchases as they come in: whatever decodes can be kept, and what cannot is refused."""

import orjson
import pytest

from stream.domains import discover
from stream.events import Decoder, Rejected
from tables.purchases import Purchases
from tables.table import Outputs
from tests.strategies import shipped

decoder = Decoder(discover()["purchases"].events)


def updated(number: str):
    """An update whose attribute is this JSON number."""
    event = {"event_id": "e1", "user_id": "u1", "type": "updated", "ts": 1_750_000_000_000}
    value = orjson.dumps(event)[:-1] + b',"attributes":{"region":%s}}' % number.encode()
    return decoder.decode(value, b"u1")


@pytest.mark.parametrize("number", ["9223372036854775807", "-9223372036854775808", "0.1", "1e300"])
def test_the_largest_numbers_that_decode_can_be_kept(number):
    """An attribute survives its record."""
    table = Purchases(shipped())
    user = table.new("u1")
    table.apply(user, updated(number), -1, Outputs())
    assert table.decode(table.encode(user)).attributes["region"][1] == orjson.loads(number)


@pytest.mark.parametrize("number", ["9223372036854775808", "-9223372036854775809", "1e400"])
def test_a_number_that_no_record_can_hold_is_invalid(number):
    """It would stop the worker at its next flush, again and again."""
    rejected = updated(number)
    assert isinstance(rejected, Rejected)
    assert rejected.code == "invalid"
    assert rejected.detail.startswith("attributes")
