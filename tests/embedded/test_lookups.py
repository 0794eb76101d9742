"""Commands that read and write embedded data: audience, erase, dead-letters."""

import asyncio
import csv
from collections.abc import Iterable
from pathlib import Path

import orjson
import pytest

from stream.app import Tagstream
from stream.domains import discover
from stream.rules import load
from stream.settings import Settings
from tests.test_commands import run

TAGS = """
version: 1
timezone: Asia/Shanghai
tags:
  - name: tier
    title: T
    domain: purchases
    cases: {high: spend_total > 100, low: orders_total > 0}
  - {name: best, title: B, domain: profile, when: tier == 'high'}
"""

DAY = "2025-04-30T09:{:02}:00+08:00"


class Data:
    """A data directory, what was fed into it, and commands that work on it."""

    def __init__(self, folder: Path) -> None:
        self.tags = folder / "tags.yaml"
        self.tags.write_text(TAGS, "utf-8")
        self.settings = {
            "TAGSTREAM_DATA_DIR": str(folder / "data"),
            "TAGSTREAM_TAGS": str(self.tags),
            "TAGSTREAM_PARTITIONS": "2",
            "TAGSTREAM_TIME": "events",
        }

    def live(self, *rows: tuple[bytes, bytes]) -> None:
        """Append to purchases, and apply whatever the sources hold."""
        asyncio.run(self._live(rows))

    async def _live(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        settings, domains = Settings.load({}, self.settings), discover()
        service = Tagstream(settings, load(self.tags, domains), domains)
        await service.start(web=False)
        await service.until_ready()
        for key, value in rows:
            service.broker.produce("purchases", [(key, value)])
        await service.drained()
        await service.stop()

    def run(self, *args: str) -> tuple[int, str, str]:
        """A command's exit code, standard output and standard error."""
        result = run(*args, stdin=None, **self.settings)
        return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return Data(tmp_path)


def order(user: str, minute: int, amount: float, **more: object) -> tuple[bytes, bytes]:
    """An order with its record key."""
    event = {"event_id": f"{user}-{minute}", "user_id": user, "type": "order"}
    content = event | {"ts": DAY.format(minute), "amount": amount} | more
    return user.encode(), orjson.dumps(content)


def test_an_audience_has_everybody_with_the_tag_now(data: Data, tmp_path: Path):
    """Tags made of tags too; by value; as JSON Lines or CSV."""
    data.live(order("ann", 1, 200), order("bob", 2, 5), order("cy", 3, 5), order("cy", 4, 99))
    code, out, said = data.run("audience", "tier")
    assert code == 0 and "users: 3" in said
    found = sorted((orjson.loads(line) for line in out.splitlines()), key=lambda u: u["user_id"])
    assert found[0] == {
        "user_id": "ann",
        "value": "high",
        "since": "2025-04-30T09:01:00.000+08:00",
    }
    assert [user["value"] for user in found] == ["high", "low", "high"]

    target = tmp_path / "high.csv"
    code, out, _ = data.run("audience", "best", "--format", "csv", "--output", str(target))
    assert code == 0 and out == ""
    rows = list(csv.DictReader(target.read_text("utf-8").splitlines()))
    assert sorted((row["user_id"], row["value"]) for row in rows) == [
        ("ann", "true"),
        ("cy", "true"),
    ]
    assert data.run("audience", "tier", "--value", "low")[1].count("bob") == 1


def test_an_audience_that_cannot_be_is_refused(data: Data):
    """With what is wrong, and what there is."""
    assert "no tag 'teir' is defined" in data.run("audience", "teir")[2]
    assert "'tier' has high, low" in data.run("audience", "tier", "--value", "x")[2]
    assert "allowed: jsonl or csv" in data.run("audience", "tier", "--format", "xml")[2]
    code, _, said = data.run("dead-letters", "list")
    assert code == 2 and "there are no embedded data in" in said


def test_a_user_is_shown_as_of_the_time_reached(data: Data, tmp_path: Path):
    """Features that no tag reads too, however long ago anything happened."""
    events = tmp_path / "events.jsonl"
    events.write_bytes(order("ann", 1, 200)[1])
    kept = (
        "--until",
        "2025-05-30T00:00:00+08:00",
        "--state-dir",
        data.settings["TAGSTREAM_DATA_DIR"],
    )
    assert data.run("replay", str(events), *kept)[0] == 0
    features = orjson.loads(data.run("user", "ann")[1])["features"]["purchases"]
    assert (features["days_since_order"], features["purchase_streak_days"]) == (30, 0)
    assert (features["orders_30d"], features["orders_90d"]) == (0, 1)
    data.run("erase", "ann")
    assert data.run("user", "ann")[0] == 1  # what waits in the sources is heard first


def test_an_erased_user_stays_erased(data: Data):
    """What he did before is dropped when it comes again; what he does later begins anew."""
    data.live(order("ann", 1, 200), order("bob", 2, 5))
    assert data.run("erase", "ann", "--at", DAY.format(10))[0] == 0
    data.live(order("ann", 1, 200), order("ann", 5, 300))
    assert "ann" not in data.run("audience", "tier")[1]
    data.live(order("ann", 11, 1))
    assert '"ann","value":"low"' in data.run("audience", "tier")[1]


def test_an_erasure_needs_an_id_and_a_time(data: Data):
    """Refused before anything is sent."""
    assert "1 to 128 characters" in data.run("erase", "")[2]
    code, _, said = data.run("erase", "ann", "--at", "yesterday")
    assert code == 2 and "--at holds 'yesterday'" in said


def test_dead_letters_are_counted_shown_and_sent_again(data: Data):
    """Under the key that their user has; once, however often they failed."""
    _, value = order("ann", 1, 200)
    data.live(
        (b"somebody", value),
        order("bob", 2, 5, type="gift"),
        order("bob", 3, -5),
        (b"x", b"{" + b" " * 70_000),
    )
    code, out, _ = data.run("dead-letters", "list")
    assert code == 0
    for text in ("key_mismatch", "unknown_type", "too_large", "amount: ", "sent again, it is"):
        assert text in out
    code, out, said = data.run("dead-letters", "show", "--code", "invalid")
    assert "purchases[" in out and "bob-3" in out and "1 of 1" in said
    assert "allowed: too_large" in data.run("dead-letters", "list", "--code", "bad")[2]

    again = data.run("dead-letters", "redrive", "--dry-run")
    assert "3 would be sent again, 1 left out" in again[1]
    assert "1 sent again" in data.run("dead-letters", "redrive", "--code", "key_mismatch")[1]
    data.live()
    assert '"ann","value":"high"' in data.run("audience", "tier")[1]
    assert "3 sent again" in data.run("dead-letters", "redrive", "--topic", "purchases")[1]
    data.live()  # two fail again, and are no more letters to be sent than before
    assert "3 sent again" in data.run("dead-letters", "redrive")[1]
