"""Event decoding: the bytes of a source record become a typed event, or a reason why not.

A reason is one of ``CODES``, tested in that order. ``Decoder`` decides those that need
nothing but the record itself (up to ``key_mismatch``); the rest need to know the
partition, the wall clock or the user, and are the machinery's to decide. The detail of a
reason names the field and never holds a user id or text of the producer's.

One typed decode is all that a good event costs. Only a bad one is looked at again, to find
out which reason comes first.
"""

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, Protocol, get_args

import msgspec
import orjson

from stream import timestamps

Code = Literal[
    "too_large",
    "malformed",
    "unknown_type",
    "invalid",
    "key_mismatch",
    "wrong_partition",
    "future",
    "too_late",
]
CODES: Final[tuple[Code, ...]] = get_args(Code)

MAX_BYTES: Final = 64 * 1024
MAX_DEPTH: Final = 400
MAX_AHEAD_MS: Final = 5 * 60 * 1000

# A value so short cannot be nested deeper than MAX_DEPTH, since what is opened has to be closed.
_SHORT: Final = 2 * MAX_DEPTH
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_BRACKET = re.compile(rb"[\[{\]}]")
_MISSING = re.compile(r"Object missing required field `(\w+)`$")
_EXPECTED = re.compile(r"Expected [^,]*(?:, got `[a-z]+`)?|Number out of range")

_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_text = msgspec.json.Decoder(str).decode


class Event(Protocol):
    """What every domain's events have: ``tables/`` declares them as tagged msgspec structs."""

    event_id: str
    user_id: str
    ts: Any  # text or a number as received; epoch milliseconds once decoded

    def check(self) -> None:
        """Settle what a type cannot say; raises ValueError ``field: reason``."""


class Keyed(Protocol):
    """The part of a source record that is decoded."""

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...


@dataclass(frozen=True)
class Rejected:
    """Why a record is no event. ``type`` is the event's where the domain has it, else ``other``."""

    code: Code
    detail: str
    type: str = "other"


class Decoder:
    """Decodes the records of one domain.

    ``events`` is the domain's union of event structs, tagged by ``type``;
    ``user_id_pattern``, where given, has to match a user id as a whole. Where a record may have
    been meant for any topic, ``everywhere`` are the types of all.
    """

    def __init__(
        self,
        events: Any,
        user_id_pattern: re.Pattern[str] | None = None,
        *,
        everywhere: Iterable[str] = (),
    ) -> None:
        self.types = frozenset(types_of(events))
        everywhere = sorted(set(everywhere))
        whose = "" if everywhere else "those of this topic, "
        self._unknown = f"type: not one of {whose}" + ", ".join(everywhere or sorted(self.types))
        self._typed = msgspec.json.Decoder(events).decode
        self._admits = user_id_pattern.fullmatch if user_id_pattern else None

    def decode(self, value: bytes | None, key: bytes | None) -> Event | Rejected:
        """The event in one record, or why there is none."""
        return self.decode_chunk([_Pair(key, value)])[0]

    def decode_chunk(self, records: Iterable[Keyed]) -> list[Event | Rejected]:
        """Each record's event, its ``ts`` in epoch milliseconds, or why there is none; in order.

        One by one on purpose: values decoded as one joined array would let ``{…},{…}`` in one
        record stand for two, and half an object in each of two records for one.
        """
        typed, admits, end_ms = self._typed, self._admits, timestamps.END_MS
        decoded: list[Event | Rejected] = []
        for record in records:
            value = record.value
            try:
                if value is None or len(value) > _SHORT:
                    value = _readable(value)
                event: Event = typed(value)
                if not value.isascii():
                    value.decode()  # what msgspec skips it does not look at
                ts = event.ts
                if ts.__class__ is not int or not 0 <= ts < end_ms:
                    event.ts = _instant(ts)
                event.check()
                user_id = event.user_id
                if admits is not None and admits(user_id) is None:
                    raise ValueError("user_id: does not match the pattern")
            except (ValueError, RecursionError) as error:
                decoded.append(self._reason(value, error))
                continue
            if record.key == user_id.encode():
                decoded.append(event)
            else:
                name = type(event).__struct_config__.tag  # type: ignore[attr-defined]
                decoded.append(Rejected("key_mismatch", "key: is not the user_id", name))
        return decoded

    def _reason(self, value: bytes | None, error: Exception) -> Rejected:
        """The first reason that holds for a value which ``error`` says is no event."""
        if isinstance(error, _UnreadableError) or value is None:
            return Rejected(*error.args)
        try:
            value.decode()
            fields = _object(value)
        except UnicodeDecodeError:
            return Rejected("malformed", "not UTF-8")
        except msgspec.ValidationError:
            return Rejected("malformed", "not a JSON object")
        except (msgspec.DecodeError, RecursionError):
            return Rejected("malformed", "not JSON")
        try:
            name = _text(fields["type"])
        except KeyError:
            return Rejected("unknown_type", "type: missing")
        except msgspec.ValidationError:
            return Rejected("unknown_type", "type: not a string")
        if name not in self.types:
            return Rejected("unknown_type", self._unknown)
        return Rejected("invalid", _detail(error), name)


class _Pair(NamedTuple):
    key: bytes | None
    value: bytes | None


class _UnreadableError(ValueError):
    """A value that is not to be decoded at all; its arguments are the code and the detail."""


def types_of(events: Any) -> list[str]:
    """The values of ``type`` that a union of tagged structs knows, in the order declared."""
    return [member.__struct_config__.tag for member in get_args(events) or (events,)]


def optional_fields(events: Any) -> dict[type, tuple[str, ...]]:
    """The fields that an event of each type may leave out, and what shows that it did."""
    members = get_args(events) or (events,)
    return {
        member: tuple(
            info.name
            for info in msgspec.structs.fields(member)
            if info.default is msgspec.UNSET or info.default is None
        )
        for member in members
    }


def future(ts_ms: int, now_ms: int) -> bool:
    """Whether an event's time is further ahead of the wall clock than clocks may differ."""
    return ts_ms > now_ms + MAX_AHEAD_MS


def dead_letter(
    code: Code,
    detail: str,
    *,
    topic: str,
    partition: int,
    offset: int,
    timestamp: int,
    value: bytes | None,
) -> bytes:
    """The record for the topic ``dead-letters``: where it was, why, and its first 64 KiB."""
    return orjson.dumps(
        {
            "code": code,
            "detail": detail,
            "topic": topic,
            "partition": partition,
            "offset": offset,
            "timestamp": timestamp,
            "value": None if value is None else base64.b64encode(value[:MAX_BYTES]).decode(),
        }
    )


def _instant(ts: int | str) -> int:
    try:
        return timestamps.parse(ts) if isinstance(ts, str) else timestamps.check(ts)
    except ValueError as error:
        raise ValueError(f"ts: {error}") from None


def _readable(value: bytes | None) -> bytes:
    """The same value, if it may be decoded: what only a long one can violate."""
    if value is None:
        raise _UnreadableError("malformed", "no value")
    if len(value) > MAX_BYTES:
        raise _UnreadableError("too_large", f"{len(value)} bytes")
    if _deep(value):
        raise _UnreadableError("malformed", f"nested deeper than {MAX_DEPTH}")
    return value


def _deep(value: bytes) -> bool:
    """Whether brackets, those in strings aside, nest deeper than ``MAX_DEPTH``.

    The same on every worker, unlike the interpreter's own limit, which counts its caller's
    frames too.
    """
    if value.count(b"[") + value.count(b"{") <= MAX_DEPTH:
        return False
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub(b"", value)):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False


def _detail(error: Exception) -> str:
    """``field: reason`` from what refused an event; no value of the producer's."""
    if not isinstance(error, msgspec.ValidationError):
        return str(error)
    if missing := _MISSING.match(str(error)):
        return f"{missing[1]}: missing"
    # The last path: an earlier one would be text of the producer's, quoted.
    reason, _, path = str(error).rpartition(" - at `$.")
    field = re.match(r"\w+", path if reason else "")
    expected = _EXPECTED.match(reason or path)
    return f"{field[0] if field else 'event'}: {expected[0] if expected else 'not allowed'}"
