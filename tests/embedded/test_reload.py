"""A running worker whose file of definitions changes: killed in the middle of it, and refusing.

What it has said in the end equals the naive reference, told where each partition was when it was
switched: that is in its changelog.
"""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import yaml

from stream import data
from stream.broker import LocalBroker
from stream.definitions import RULES, decode_switch
from stream.domains import discover
from stream.rules import load
from tests.broker.everything import EVERY_TAG
from tests.broker.worker import Worker, wait_until
from tests.embedded.test_service import PARTITIONS, events, finish, post, read
from tests.reference import DOMAINS, Reference, by_domain, by_user, settled, telling

CHANGELOG = "tagstream-state-changelog"
BATCH = 100


def reformed() -> str:
    """The same definitions changed in every way that a file may change."""
    content: dict[str, Any] = yaml.safe_load(EVERY_TAG)
    tags = {tag["name"]: tag for tag in content["tags"]}
    tags["value"]["cases"] = {"high": "spend_90d > 1200", "thrifty": "coupon_rate_90d >= 0.5"}
    tags["regular"]["when"] = "purchase_streak_days >= 3"
    tags["tired"]["when"] = "unanswered >= 2"
    for name in ("bargains", "fond", "odd"):
        del tags[name]
    # From now on this one has values, and that one has none.
    tags["asking"]["cases"] = {"often": tags["asking"].pop("when"), "once": "contacts_30d == 1"}
    tags["patience"]["when"] = tags["patience"].pop("cases")["lost"]
    silent = {"name": "silent", "domain": "purchases", "when": "days_since_order >= 4"}
    both = {"name": "silent_twice", "domain": "profile", "when": "silent and not awake"}
    content |= {
        "version": 2,
        "allowed_delay": "2h",
        "attributes": ["tier"],
        "churn": {"mode": "silence", "after": "4d", "lead": "1d", "control": 0.1},
        "tags": [silent, *(tag for tag in tags.values() if tag["name"] != "back_again"), both],
    }
    return yaml.safe_dump(content, allow_unicode=True, sort_keys=False)


def switched_at(broker: LocalBroker, partition: int) -> dict[str, int]:
    """The offsets of the sources where the definitions were switched."""
    rows = broker.read(CHANGELOG, partition, 0, max_records=1_000_000)
    switch = decode_switch([row.value or b"" for row in rows if row.key == RULES][-1])
    assert not switch.before, "somebody still waits"
    return switch.offsets


def test_a_worker_killed_while_its_definitions_are_switched_says_what_the_reference_says(
    tmp_path: Path,
):
    """The file changes in the middle of the stream; kills come before, during and after."""
    tags = tmp_path / "tags.yaml"
    tags.write_text(EVERY_TAG)
    before = load(tags, discover())
    settings = {
        "TAGSTREAM_BROKER": f"local://{tmp_path / 'broker'}",
        "TAGSTREAM_PARTITIONS": str(PARTITIONS),
        "TAGSTREAM_TIME": "events",
        "TAGSTREAM_TAGS": str(tags),
    }
    worker = Worker(tmp_path / "worker", settings).start().wait_ready()
    made = events()
    batches = [made[first : first + BATCH] for first in range(0, len(made), BATCH)]
    for number, batch in enumerate(batches):
        if number == len(batches) // 2:
            (tmp_path / "new.yaml").write_text(reformed())
            (tmp_path / "new.yaml").replace(tags)
            wait_until(lambda: runs(worker, 2), "the new definitions in force")
            worker.kill()
            worker.start().wait_ready()
        elif number % 6 == 5:
            worker.kill()
            worker.start().wait_ready()
        wait_until(partial(post, worker, batch), "the worker takes events")
    wait_until(
        lambda: worker.metric("tagstream_rules_sweep_remaining") == 0, "nobody waits any more"
    )
    assert '"version":2,' in worker.get("/tags")[1]
    worker.stop()
    asyncio.run(finish(worker))
    reference = Reference(before, PARTITIONS)
    after = load(tags, discover())
    with LocalBroker(tmp_path / "broker") as broker:
        sources = {domain: read(broker, domain) for domain in DOMAINS}
        changes = [change for _, change in read(broker, "tag-changes")]
        warnings = [warning for _, warning in read(broker, "churn-warnings")]
        for partition in range(PARTITIONS):
            places = switched_at(broker, partition)
            own = {
                domain: [event for number, event in events if number == partition]
                for domain, events in sources.items()
            }
            for domain, told in own.items():
                for event in told[: places[domain]]:
                    reference.apply(partition, event, domain)
            reference.switch(after, partition)
            for domain, told in own.items():
                for event in told[places[domain] :]:
                    reference.apply(partition, event, domain)
    reference.finish()
    assert any(change["cause"]["kind"] == "rules" for change in changes)
    assert by_domain(changes) == by_domain(reference.changes)
    assert settled(changes) == settled(reference.changes)
    purchases = {tag.name for tag in (*before.tags, *after.tags) if tag.domain == "purchases"}
    told, expected = (telling(purchases, each) for each in (warnings, reference.warnings))
    assert by_user(told) == by_user(expected)
    assert len({change["change_id"] for change in changes}) == len(changes)
    assert len({(w["warning_id"], w["status"]) for w in warnings}) == len(warnings)


def test_a_worker_refuses_a_bad_file_and_says_so(tmp_path: Path):
    """While it runs, and when it starts: what is in force stays."""
    tags = tmp_path / "tags.yaml"
    tags.write_text(data.TAGS.read_text())
    version = load(tags, discover()).version
    worker = Worker(tmp_path / "worker", {"TAGSTREAM_TAGS": str(tags)}).start().wait_ready()
    event = {"event_id": "e1", "user_id": "u1", "type": "order", "ts": 1_750_000_000_000}
    wait_until(partial(post, worker, [event | {"amount": 1}]), "the worker takes events")
    tags.write_text(tags.read_text().replace("orders_30d", "orders_3d"))
    wait_until(
        lambda: worker.metric("tagstream_rules_reload_failures_total") == 1, "the file refused"
    )
    assert "unknown feature 'orders_3d'" in worker.tail()
    tags.write_text(data.TAGS.read_text().replace("repurchases_90d > 2", "repurchases_90d > 3"))
    wait_until(
        lambda: worker.metric("tagstream_rules_reload_failures_total") == 2, "the file refused"
    )
    assert runs(worker, version)
    wait_until(lambda: worker.get("/users/u1")[0] == 200, "the event applied")
    worker.stop()
    worker.start().wait_ready()
    assert worker.metric("tagstream_rules_reload_failures_total") >= 1
    assert "but the content is another: raise it" in worker.tail()
    definitions = {tag["name"]: tag for tag in orjson.loads(worker.get("/tags")[1])["tags"]}
    assert "repurchases_90d > 2" in str(definitions["high_repurchase"]["conditions"])
    worker.stop()


def runs(worker: Worker, version: int) -> bool:
    """Whether every partition of the worker follows this version."""
    lines = worker.get("/metrics")[1].splitlines()
    shown = [line for line in lines if line.startswith("tagstream_rules_info{")]
    return shown == [f'tagstream_rules_info{{version="{version}"}} 1.0']
