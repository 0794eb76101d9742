"""The schemas of the topics, held against what is really emitted and what is really taken."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from jsonschema import Draft202012Validator

from stream.domains import discover
from stream.events import Decoder, Rejected, types_of
from stream.schemas import ASYNCAPI, FOLDER
from stream.topics import CHANGELOG, OUTPUTS
from tests.embedded.test_figures import TAGS
from tests.inprocess import InProcess
from tests.strategies import scenes

OUTPUT_SCHEMAS = {
    "tag-changes": "tag-change",
    "user-tags": "user-tags",
    "churn-warnings": "churn-warning",
    "dead-letters": "dead-letter",
}


@cache
def validator(name: str) -> Draft202012Validator:
    """Of one schema file."""
    schema = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def problems(name: str, record: Any) -> list[str]:
    """Why a record is none of this schema."""
    return [f"{error.json_path}: {error.message}" for error in validator(name).iter_errors(record)]


def test_the_asyncapi_document_has_every_topic_with_a_schema_that_is_there():
    """All sources, all outputs, nothing internal; every reference leads somewhere."""
    document = json.loads(ASYNCAPI.read_text("utf-8"))
    assert document["asyncapi"] == "3.0.0"
    assert document["channels"].keys() == {*discover(), *OUTPUTS} - {CHANGELOG}

    def resolve(reference: str) -> Any:
        found: Any = document
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
        return found

    for channel in document["channels"].values():
        for message in channel["messages"].values():
            payload = resolve(message["$ref"])["payload"]["$ref"]
            assert (ASYNCAPI.parent / payload).is_file()
    actions = {"receive": set(discover()), "send": set(OUTPUT_SCHEMAS)}
    for operation in document["operations"].values():
        topic = operation["channel"]["$ref"].rpartition("/")[2]
        assert topic in actions[operation["action"]]
        assert resolve(operation["channel"]["$ref"])["address"] == topic
        assert all(resolve(message["$ref"]) for message in operation["messages"])
    assert len(document["operations"]) == len(document["channels"])


@pytest.mark.parametrize("domain", discover())
def test_a_source_schema_has_the_types_that_its_domain_takes(domain):
    """No more, no fewer."""
    schema: Any = validator(domain).schema
    types = [each["properties"]["type"]["const"] for each in schema["oneOf"]]
    assert sorted(types) == sorted(types_of(discover()[domain].events))


@settings(max_examples=60, deadline=None)
@given(scenes(max_events=8))
def test_what_is_taken_is_what_the_schema_says(scene):
    """Of random events and of events with a field spoilt."""
    domains = discover()
    for _, event in scene.stream:
        for spoilt in (event, *({**event, name: []} for name in event)):
            for name, domain in domains.items():
                if event["type"] not in types_of(domain.events):
                    continue
                key = spoilt["user_id"].encode() if isinstance(spoilt["user_id"], str) else b""
                taken = Decoder(domain.events).decode(orjson.dumps(spoilt), key)
                assert (taken.__class__ is Rejected) == bool(problems(name, spoilt)), spoilt


async def test_every_record_that_is_emitted_is_of_its_schema(tmp_path: Path):
    """Changes of every cause but new definitions, all warnings, tombstones, dead letters."""
    tags = [
        {"name": "tier", "domain": "purchases", "cases": {"high": "spend_total > 100"}},
        {"name": "buyer", "domain": "purchases", "when": "orders_30d > 0", "control": 0.5},
        {"name": "new", "domain": "purchases", "when": "days_since_first_order < 9"},
        {"name": "ever", "domain": "purchases", "when": "orders_total > 0"},
        {"name": "best", "domain": "profile", "when": "tier == 'high' and buyer"},
        {"name": "nobody", "domain": "profile", "cases": {"yes": "not buyer"}},
    ]
    async with InProcess(tmp_path, TAGS | {"tags": tags}) as worker:
        for number in range(20):
            await worker.send(
                f'u{number} order 2025-04-01T09:00 {{"amount": {number * 20}}}',
                f"u{number} registered 2025-04-01T10:00",
            )
        await worker.send(
            'u1 order 2025-04-30T09:00 {"amount": 1}',
            'u2 order 2025-05-20T09:00 {"amount": 1}',
            "u3 erase 2025-05-20T10:00",
            "u1 gift 2025-05-20T10:00",
            'u1 order 2025-05-20T10:00 {"amount": -1}',
            'u1 order 2024-05-20T10:00 {"amount": 1}',
        )
        seen: dict[str, set[Any]] = {}
        for topic, name in OUTPUT_SCHEMAS.items():
            for key, record in worker.rows(topic):
                if record is None:
                    assert topic == "user-tags"
                    continue
                assert not problems(name, record), record
                seen.setdefault(topic, set()).add(
                    record.get("status") or record.get("code") or record.get("domain")
                )
                if topic != "dead-letters":
                    assert key == record["user_id"].encode()
        causes = {change["cause"]["kind"] for _, change in worker.rows("tag-changes")}
        assert causes == {"event", "time", "tag", "erase"}
        assert seen["churn-warnings"] == {"raised", "returned", "churned", "scored"}
        assert seen["dead-letters"] == {"unknown_type", "invalid", "too_late"}
        assert (b"u3", None) in worker.rows("user-tags")
