"""Decoding: every record is an event or has the first reason that holds, and nothing else."""

import base64
import json
import random
import re
from dataclasses import dataclass
from typing import Annotated

import msgspec
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stream.events import (
    CODES,
    MAX_BYTES,
    MAX_DEPTH,
    Decoder,
    Rejected,
    dead_letter,
    future,
    types_of,
)
from stream.timestamps import END_MS

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class Base(msgspec.Struct, tag_field="type"):
    event_id: Id
    user_id: Id
    ts: int | str

    def check(self) -> None:
        """Nothing that the types do not say."""


class Note(Base, tag="note"):
    words: dict[str, str | int | float | None] = {}


class Paid(Base, tag="paid"):
    amount: Annotated[float, msgspec.Meta(ge=0)]
    coupon: bool = False

    def check(self) -> None:
        """Whole fen."""
        if round(self.amount * 100) / 100 != self.amount:
            raise ValueError("amount: more than 2 decimals")


decoder = Decoder(Note | Paid)
TS = 1_745_942_400_000
GOOD = {"event_id": "e1", "user_id": "u1", "type": "paid", "ts": TS, "amount": 9.9}


def encode(**changes) -> bytes:
    """A good event with some fields changed; None removes one."""
    event = {**GOOD, **changes}
    return json.dumps({name: value for name, value in event.items() if value is not None}).encode()


def outcome(value: bytes | None, key: bytes | None = b"u1") -> tuple[str, str]:
    """Code and detail of a record that is refused."""
    rejected = decoder.decode(value, key)
    assert isinstance(rejected, Rejected)
    return rejected.code, rejected.detail


def test_a_good_event_is_typed_and_its_time_is_milliseconds():
    """Numbers and text of the same instant decode alike; unknown fields are ignored."""
    for ts in (TS, "2025-04-29T16:00:00Z", "2025-04-30T00:00:00.0009+08:00"):
        event = decoder.decode(encode(ts=ts, more={"any": ["thing"]}), b"u1")
        assert event == Paid(event_id="e1", user_id="u1", ts=TS, amount=9.9)


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"event_id": None}, "event_id: missing"),
        ({"event_id": 5}, "event_id: Expected `str`, got `int`"),
        ({"event_id": ""}, "event_id: Expected `str` of length >= 1"),
        ({"event_id": "e" * 129}, "event_id: Expected `str` of length <= 128"),
        ({"user_id": None}, "user_id: missing"),
        ({"user_id": "u" * 129}, "user_id: Expected `str` of length <= 128"),
        ({"user_id": ["u1"]}, "user_id: Expected `str`, got `array`"),
        ({"ts": None}, "ts: missing"),
        ({"ts": True}, "ts: Expected `int | str`, got `bool`"),
        ({"ts": 1.0}, "ts: Expected `int | str`, got `float`"),
        ({"ts": -1}, "ts: not between 1970 and 9998"),
        ({"ts": END_MS}, "ts: not between 1970 and 9998"),
        ({"ts": 10**40}, "ts: not between 1970 and 9998"),
        ({"ts": "2025-04-30T00:00:00"}, "ts: not an RFC 3339 time with offset"),
        ({"ts": "2025-02-30T00:00:00Z"}, "ts: no such date or time of day"),
        ({"amount": None}, "amount: missing"),
        ({"amount": -0.01}, "amount: Expected `float` >= 0.0"),
        ({"amount": "9.9"}, "amount: Expected `float`, got `str`"),
        ({"amount": 0.001}, "amount: more than 2 decimals"),
        ({"coupon": 1}, "coupon: Expected `bool`, got `int`"),
        (
            {"type": "note", "words": {"u1": [1]}},
            "words: Expected `int | float | str | null`, got `array`",
        ),
        ({"type": "note", "words": 1}, "words: Expected `object`, got `int`"),
    ],
)
def test_an_unusable_field_is_invalid_and_named(changes, detail):
    """The detail says which field and what is wrong, never what it held."""
    assert outcome(encode(**changes)) == ("invalid", detail)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "malformed"),
        (b"", "malformed"),
        (b" ", "malformed"),
        (b"null", "malformed"),
        (b"[]", "malformed"),
        (b'"{}"', "malformed"),
        (b"{}{}", "malformed"),
        (b"{'type':'paid'}", "malformed"),
        (b"\xef\xbb\xbf" + encode(), "malformed"),
        (encode() + b",", "malformed"),
        (encode() + b"\0", "malformed"),
        (encode()[:-1] + b',"x":NaN}', "malformed"),
        (encode()[:-1] + b',"x":Infinity}', "malformed"),
        (encode()[:-1] + b',"x":"\xff"}', "malformed"),
        (encode()[:-1] + b',"x":"\xed\xa0\x80"}', "malformed"),
        (encode()[:-1] + b',"x":"\\ud800"}', "malformed"),
        (encode()[:-1] + b',"x":"\t"}', "malformed"),
        (encode()[:-1] + b',"amount":01}', "malformed"),
        (encode()[:-1] + b',"amount":NaN}', "malformed"),
        (encode().decode().encode("utf-16"), "malformed"),
        (b"{}", "unknown_type"),
        (b'{"type":null}', "unknown_type"),
        (b'{"type":["paid"]}', "unknown_type"),
        (b'{"type":"Paid"}', "unknown_type"),
        (encode(type="refund", ts="bad"), "unknown_type"),
        (b'{"type":"paid"}', "invalid"),
        (encode()[:-1] + b',"amount":1e400}', "invalid"),
        (encode()[:-1] + b',"type":"note"}', "invalid"),
        (encode(ts="soon", event_id=""), "invalid"),
    ],
)
def test_the_first_reason_in_the_contracts_order_is_given(value, expected):
    """A wrong key never hides what is wrong with the value."""
    assert outcome(value)[0] == expected
    assert outcome(value, b"another")[0] == expected


def test_an_unknown_type_is_told_what_there_is():
    """In the topic; or anywhere, where the type would have chosen the topic."""
    value = encode(type="refund")
    assert outcome(value)[1] == "type: not one of those of this topic, note, paid"
    anywhere = Decoder(Note | Paid, everywhere=["view", "paid", "note"])
    refused = Rejected("unknown_type", "type: not one of note, paid, view")
    assert anywhere.decode(value, b"u1") == refused


@pytest.mark.parametrize("key", [None, b"", b"u", b"u12", b"U1", b"\xff", b'"u1"'])
def test_the_key_is_the_user_id_in_utf8(key):
    """Anything else would put a user into a partition that is not his."""
    assert outcome(encode(), key) == ("key_mismatch", "key: is not the user_id")
    assert not isinstance(decoder.decode(encode(user_id="用户"), "用户".encode()), Rejected)


def test_the_pattern_is_tested_as_a_whole_and_before_the_key():
    """A phone number with something before it is still no user id."""
    strict = Decoder(Note | Paid, re.compile(r"u[0-9]+"))
    assert not isinstance(strict.decode(encode(), b"u1"), Rejected)
    for user_id in ("13800138000", "xu1", "u1\n", "u"):
        rejected = strict.decode(encode(user_id=user_id), b"another")
        assert rejected == Rejected("invalid", "user_id: does not match the pattern", "paid")


def test_size_is_tested_first_and_64_kib_are_allowed():
    """One byte more is too large, whatever it holds."""
    fill = MAX_BYTES - len(encode(x=""))
    assert not isinstance(decoder.decode(encode(x="x" * fill), b"u1"), Rejected)
    assert outcome(encode(x="x" * (fill + 1))) == ("too_large", "65537 bytes")
    assert outcome(b"\xff" * (MAX_BYTES + 1))[0] == "too_large"


def nested(depth: int, padding: int = 0) -> bytes:
    """A good event with an ignored field, so that the whole is ``depth`` deep."""
    inner = b"[" * (depth - 1) + b"]" * (depth - 1)
    return encode()[:-1] + b',"x":' + inner + b',"y":"' + b"[" * padding + b'"}'


@pytest.mark.parametrize("padding", [0, 3_000])
def test_nesting_has_a_limit_of_our_own(padding):
    """The interpreter's depends on who calls; brackets in text do not count."""
    assert not isinstance(decoder.decode(nested(MAX_DEPTH, padding), b"u1"), Rejected)
    assert outcome(nested(MAX_DEPTH + 1, padding)) == ("malformed", "nested deeper than 400")
    assert outcome(b"[" * 30_000)[0] == "malformed"
    assert outcome(b'{"x":' * 10_000)[0] == "malformed"


def test_the_rejected_types_are_the_domains_own():
    """A type for the metrics: bounded, whatever producers send."""
    assert types_of(Note | Paid) == ["note", "paid"]
    assert types_of(Paid) == ["paid"]
    rejected = [decoder.decode(encode(type=name, ts=-1), b"u1") for name in ("note", "x")]
    assert [item.type for item in rejected if isinstance(item, Rejected)] == ["note", "other"]


@dataclass
class Keyed:
    key: bytes | None
    value: bytes | None


@pytest.mark.parametrize(
    "values",
    [
        [encode() + b"," + encode(), b""],
        [encode()[:-1] + b',"x":[1', b"2]}"],
        [encode() + b"," + encode(), encode()[:-1] + b',"x":[1', b"2]}"],
        [encode()[:-1] + b',"x":"', b'"}', encode() + b"," + encode()],
        [encode() + b"]", b"[" + encode()],
    ],
)
def test_values_that_are_json_only_when_joined_are_malformed_one_by_one(values):
    """No record's meaning depends on its neighbours in a chunk."""
    outcomes = decoder.decode_chunk([Keyed(b"u1", value) for value in values])
    assert [item.code for item in outcomes if isinstance(item, Rejected)] == [
        "malformed" for _ in values
    ]


# JSON-like bytes: whole events, their pieces and what surrounds them, cut, joined and bent.
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**400, "2025-04-30T00:00:00+08:00", "1969-12-31T23:59:59Z", "u1"])
)
documents = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner)
)
events = st.fixed_dictionaries(
    {},
    optional={
        "event_id": st.text(max_size=140) | leaves,
        "user_id": st.just("u1") | st.text(max_size=140) | leaves,
        "type": st.sampled_from(["note", "paid", "order"]) | leaves,
        "ts": st.integers(-(10**6), 10**15) | leaves,
        "amount": st.integers(0, 10**6).map(lambda fen: fen / 100) | leaves,
        "coupon": st.booleans() | leaves,
        "words": st.dictionaries(st.text(), leaves) | leaves,
        "more": documents,
    },
)
bent = st.builds(
    lambda value, position, piece: value[:position] + piece + value[position:],
    events.map(lambda event: json.dumps(event, ensure_ascii=False).encode("utf-8", "replace")),
    st.integers(0, 400),
    st.binary(max_size=3) | st.sampled_from([b",", b"]", b"}", b'"', b"\\", b"\\ud800", b"e999"]),
)
values = (
    events.map(lambda event: json.dumps(event).encode())
    | documents.map(lambda document: json.dumps(document).encode())
    | bent
    | st.binary()
)


@given(values, st.none() | st.just(b"u1") | st.binary())
@example(b'{"type":"paid","ts":' + b"9" * 5_000 + b"}", None)
@example(encode()[:-1] + b',"x":' + b"9" * 5_000 + b"}", b"u1")
@example(encode()[:-1] + b',"type":"x - at `$.u1"}', b"u1")
def test_nothing_but_events_and_reasons_comes_out(value, key):
    """And an event that comes out is one by a slower, independent reading too."""
    result = decoder.decode(value, key)
    if isinstance(result, Rejected):
        assert CODES.index(result.code) <= CODES.index("key_mismatch")
        assert result.type in ("note", "paid", "other")
        named = r"\w+: [A-Za-z0-9`|<>=.,_ ]+"
        assert re.fullmatch(named + r"|not (UTF-8|JSON|a JSON object)|no value", result.detail)
        return
    fields = json.loads(value.decode(), parse_int=lambda digits: int(digits[:20]))
    assert fields["type"] == ("paid" if isinstance(result, Paid) else "note")
    assert fields["user_id"] == result.user_id == (key or b"").decode()
    assert 1 <= len(result.user_id) <= 128
    assert 1 <= len(fields["event_id"]) <= 128
    assert type(fields["ts"]) in (int, str)
    assert 0 <= result.ts < END_MS


@given(st.text("§用户 0189", min_size=6), st.sampled_from(["event_id", "type", "ts", "amount"]))
def test_no_detail_repeats_what_a_producer_wrote(text, field):
    """Ids and free text stay out of logs and metrics."""
    rejected = decoder.decode(encode(user_id=text, **{field: {text: text}}), text.encode())
    assert isinstance(rejected, Rejected)
    assert text not in rejected.detail


def test_a_dead_letter_holds_the_place_the_reason_and_64_kib_of_the_original():
    """What is needed to explain it and to send it again."""
    value = random.Random(7).randbytes(MAX_BYTES + 1)
    record = orjson.loads(
        dead_letter(
            "too_large", "65537 bytes", topic="t", partition=3, offset=41, timestamp=9, value=value
        )
    )
    assert base64.b64decode(record.pop("value")) == value[:MAX_BYTES]
    assert record == {
        "code": "too_large",
        "detail": "65537 bytes",
        "topic": "t",
        "partition": 3,
        "offset": 41,
        "timestamp": 9,
    }


def test_the_future_begins_after_five_minutes():
    """Exactly five minutes ahead is still allowed."""
    assert not future(300_000, now_ms=0)
    assert future(300_001, now_ms=0)
