"""Records as tests compare them: grouped, and without what says nothing of the user."""

from collections.abc import Container, Iterable, Mapping
from itertools import groupby
from typing import Any

Record = dict[str, Any]

INDEPENDENT_OF_THIS = ("change_id", "warning_id", "emitted_at")
PROFILE = "profile"


def by_user(records: Iterable[Mapping[str, Any]]) -> dict[str, list[Record]]:
    """Each user's records in order, without ids and the time of emission.

    Where a change names another one as its cause, that one itself stands for its id. What
    changed because the definitions did has no order within one instant: by name.
    """
    records = list(records)
    named = {record["change_id"]: record for record in records if "change_id" in record}
    grouped: dict[str, list[Record]] = {}
    for record in records:
        bare = {key: value for key, value in record.items() if key not in INDEPENDENT_OF_THIS}
        if (cause := bare.get("cause", {})).get("kind") == "tag":
            of = named[cause["change_id"]]
            what = {key: of[key] for key in ("user_id", "domain", "tag", "value", "effective_at")}
            bare["cause"] = {"kind": "tag", "change": what}
        if isinstance(bare.get("probability"), float):
            bare["probability"] = round(bare["probability"], 9)
        grouped.setdefault(record["user_id"], []).append(bare)
    return {user_id: _sorted_by_name(own) for user_id, own in grouped.items()}


def by_domain(changes: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], list[Record]]:
    """Changes of each user and domain in order: what does not depend on how domains interleave.

    Tags made of tags are left out, for what they are in between does.
    """
    grouped: dict[tuple[str, str], list[Record]] = {}
    for user_id, own in by_user(changes).items():
        for change in own:
            if change["domain"] != PROFILE:
                grouped.setdefault((user_id, change["domain"]), []).append(change)
    return grouped


def settled(changes: Iterable[Mapping[str, Any]]) -> dict[str, Record]:
    """What each user's tags are in the end, going by the changes alone; none: not there."""
    tags: dict[str, Record] = {}
    for change in changes:
        own = tags.setdefault(change["user_id"], {})
        before = own.get(change["tag"], change["previous"])
        # False and null are the same to whoever had the tag under other definitions.
        assert before == change["previous"] or not (before or change["previous"])
        own[change["tag"]] = change["value"]
    held = {
        user_id: {tag: value for tag, value in own.items() if value not in (None, False)}
        for user_id, own in tags.items()
    }
    return {user_id: own for user_id, own in held.items() if own}


def telling(tags: Container[str], warnings: Iterable[Mapping[str, Any]]) -> list[Record]:
    """Warnings that tell of these tags alone: those of other domains have no order beside them."""
    return [
        {
            **warning,
            "tags": {name: value for name, value in warning["tags"].items() if name in tags},
        }
        for warning in warnings
    ]


def values(user_tags: Mapping[str, Mapping[str, Any]]) -> dict[str, Record]:
    """The values of each user's tags, of users who have any, from records of ``user-tags``."""
    held = {
        user_id: {name: tag["value"] for name, tag in told["tags"].items()}
        for user_id, told in user_tags.items()
    }
    return {user_id: own for user_id, own in held.items() if own}


def _sorted_by_name(records: list[Record]) -> list[Record]:
    ordered: list[Record] = []
    for place, group in groupby(records, key=_place):
        own = list(group)
        ordered += own if place is None else sorted(own, key=lambda change: change["tag"])
    return ordered


def _place(record: Record) -> tuple[str, str] | None:
    if record.get("cause", {}).get("kind") != "rules":
        return None
    return record["domain"], record["effective_at"]
