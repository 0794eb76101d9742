"""Names and shares that come out the same on every worker, today and after a replay."""

from hashlib import blake2b
from typing import Any

from msgspec.json import encode


def identify(*parts: Any) -> str:
    """The id of what ``parts`` describe: 128 bits in hex, a hash of them as a JSON array."""
    return blake2b(encode(parts), digest_size=16).hexdigest()


def is_control(purpose: str, user_id: str, share: float | None) -> bool:
    """Whether the user is among the ``share`` (0 to 1) that is left alone for comparison.

    Independent between purposes.
    """
    if not share:
        return False
    drawn = int.from_bytes(blake2b(f"{purpose}:{user_id}".encode(), digest_size=8).digest(), "big")
    return drawn < share * 2**64
