"""Users and definitions as people and services read them: JSON-ready, by name."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from stream.domains import Domain
from tables.identity import is_control


def local_iso(ts_ms: int, zone: ZoneInfo) -> str:
    """An instant in local time with milliseconds, as all outputs write it."""
    return datetime.fromtimestamp(ts_ms / 1000, zone).isoformat(timespec="milliseconds")


def describe_user(
    profile: Any | None, records: Mapping[str, Any], domains: Mapping[str, Domain], rules: Any
) -> dict[str, Any] | None:
    """Current tags with ``since``, and every feature by domain; None where nothing is known.

    ``profile`` and ``records``, decoded records by domain, are the user's. Infinity becomes null.
    """
    if profile is None:
        return None
    zone = ZoneInfo(rules.timezone)
    features: dict[str, dict[str, Any]] = {}
    for name, user in records.items():
        domain = domains[name]
        readers = dict(domain.features)
        if domain.attribute_reader is not None:
            readers |= {key: domain.attribute_reader(key) for key in rules.attributes}
        features[name] = {
            key: None if (value := read(user)) == math.inf else value
            for key, read in readers.items()
        }
    return {
        "user_id": profile.user_id,
        "tags": {
            name: {"value": held.value, "since": local_iso(held.since_ms, zone)}
            for name, held in profile.tags.items()
        },
        "features": features,
    }


def describe_audience(
    tag: str, held: Sequence[tuple[str, Any]], rules: Any
) -> list[dict[str, Any]]:
    """Users who have a tag: its value, since when, and whether to leave them alone."""
    zone = ZoneInfo(rules.timezone)
    # None of that name: the definitions were switched while the audience was looked for.
    shares = {definition.name: definition.control for definition in rules.tags}
    users = []
    for user_id, state in held:
        since = local_iso(state.since_ms, zone)
        user = {"user_id": user_id, "value": state.value, "since": since}
        if is_control(tag, user_id, shares.get(tag)):
            user["control"] = True
        users.append(user)
    return users


def describe_tag(definition: Any) -> dict[str, Any]:
    """A definition as `GET /tags` gives it."""
    return {
        "name": definition.name,
        "title": definition.title,
        "titles": dict(definition.titles),
        "labels": {
            value: {language or "any": text for language, text in labels.items()}
            for value, labels in definition.labels.items()
        },
        "domain": definition.domain,
        "owner": definition.owner,
        "description": definition.description,
        "version": definition.version,
        "use": definition.use,
        "conditions": [
            {"value": value, "when": condition.text} for value, condition in definition.cases
        ],
        "values": list(definition.values),
        "features": list(definition.features),
        "control": definition.control,
    }
