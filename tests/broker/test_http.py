"""HTTP while workers join, leave, sleep and die: no 500, and no answer that is wrong.

Askers never stop asking, any worker anything. What an answer may be follows from what was
committed before the question: a user has at least those orders, an audience at least those
users. Whoever cannot say so has to say 503 with Retry-After, or nothing at all.
"""

import http.client
import itertools
import json
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error

from stream.schemas import OPENAPI
from tests.broker.conftest import Kafka
from tests.broker.harness import Service
from tests.broker.purchases import Sent
from tests.broker.worker import DEADLINE_S, Worker

pytestmark = pytest.mark.broker

TAGS = """\
version: 1
timezone: UTC
tags:
  - {name: buyer, title: B, domain: purchases, when: orders_total > 0}
  - name: tier
    title: T
    domain: purchases
    cases: {odd: 'orders_total in [1, 3, 5]', other: orders_total > 0}
"""
USERS = [f"user/{number}" for number in range(40)]
CASES = 40  # of each operation, made from the document
START_MS = 1_750_000_000_000


class Askers:
    """Ask until told otherwise; ``wrong`` is what should not have been answered."""

    def __init__(self, service: Service) -> None:
        self.wrong: list[str] = []
        self.right = 0  # answers that said something
        self.walks = 0  # audiences gone through from the first page to the last
        self.floor = 0  # orders that every user has, committed
        self._service = service
        self._over = threading.Event()
        self._cases = _cases()

    @contextmanager
    def asking(self) -> Iterator[None]:
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(ask, random.Random(n)) for n, ask in enumerate(self._kinds())]
            try:
                yield
            finally:
                self._over.set()
                for each in asked:
                    each.result()

    def _kinds(self) -> list[Any]:
        return [self._look_up, self._look_up, self._walk, self._fuzz]

    def more(self, number: int = 50) -> None:
        """Return once so many more answers, and a whole audience, have come."""
        enough, walks = self.right + number, self.walks + 1
        self._service.wait_until(
            lambda: self.right >= enough and self.walks >= walks, "more answers, and an audience"
        )

    def _get(self, worker: Worker, path: str) -> tuple[int, Any]:
        """Status and content; 0 where nobody answers in time."""
        connection = http.client.HTTPConnection("127.0.0.1", worker.port, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            content = json.loads(answer.read())
        except (OSError, http.client.HTTPException):
            return 0, None
        finally:
            connection.close()
        if answer.status == 503 and not answer.headers["Retry-After"]:
            self.wrong.append(f"503 without Retry-After: {path}")
        if answer.status not in (200, 404, 503):
            self.wrong.append(f"{answer.status}: {path}: {content}")
        return answer.status, content

    def _anyone(self, rng: random.Random) -> Worker:
        return rng.choice(list(self._service.workers.values()))

    def look_up(self, worker: Worker, user: str) -> int:
        """Ask for a user, and judge the answer; its status."""
        floor = self.floor
        status, content = self._get(worker, f"/users/{quote(user, safe='')}")
        if status == 404 and user in USERS:
            self.wrong.append(f"nobody knows {user}, says {worker.directory.name}")
        if status == 200:
            orders = content["features"]["purchases"]["orders_total"]
            if orders < floor or "buyer" not in content["tags"]:
                said = f"{worker.directory.name} says {orders} orders, {floor} are committed"
                self.wrong.append(said)
            self.right += 1
        return status

    def _look_up(self, rng: random.Random) -> None:
        while not self._over.is_set():
            self.look_up(self._anyone(rng), rng.choice([*USERS, "nobody"]))

    def _walk(self, rng: random.Random) -> None:
        """A whole audience, each page from somebody else."""
        while not self._over.is_set():
            found: list[str] = []
            cursor: str | None = ""
            limit = rng.choice([3, 10, 100])
            while cursor is not None and not self._over.is_set():
                path = f"/tags/buyer/users?limit={limit}&cursor={cursor}"
                status, page = self._get(self._anyone(rng), path)
                if status == 404:
                    self.wrong.append(f"{path}: {page}")
                if status == 200:
                    found += [user["user_id"] for user in page["users"]]
                    cursor = page["cursor"]
            if cursor is None:
                self.walks += 1
                if sorted(found) != sorted(USERS):
                    self.wrong.append(f"an audience of {len(found)}: {sorted(found)}")

    def _fuzz(self, rng: random.Random) -> None:
        """What the document allows, answered as the document says."""
        with requests.Session() as session:
            while not self._over.is_set():
                case, worker = rng.choice(self._cases), self._anyone(rng)
                url = f"http://127.0.0.1:{worker.port}"
                try:
                    answer = case.call(base_url=url, session=session, timeout=5)
                except requests.RequestException:
                    continue
                if answer.status_code == 500:
                    self.wrong.append(f"500: {case.path}")
                try:
                    case.validate_response(answer, excluded_checks=[not_a_server_error])
                except* AssertionError as errors:
                    self.wrong += [f"{case.path}: {error}" for error in errors.exceptions]


def _cases() -> list[Any]:
    """Requests made from the document, but those that need an embedded broker or never end."""
    api: Any = schemathesis.openapi.from_path(OPENAPI)
    made: list[Any] = []
    for found in api.get_all_operations():
        operation = found.ok()
        if operation.label in ("POST /events", "GET /live"):
            continue

        @given(case=operation.as_strategy())
        @settings(
            max_examples=CASES,
            phases=[Phase.generate],
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        def keep(case: Any) -> None:
            made.append(case)

        keep()
    return made


def orders(number: int) -> Iterator[Sent]:
    """The ``number``-th order of every user."""
    for user in USERS:
        ts_ms = START_MS + number * 1_000
        event = {"event_id": f"{user}-{number}", "user_id": user, "type": "order", "amount": 1}
        yield user, json.dumps({**event, "ts": ts_ms}).encode()


def test_no_answer_is_wrong_whatever_befalls_the_workers(
    kafka: Kafka, prefix: str, tmp_path: Path
) -> None:
    """One is killed, one joins, one leaves, one sleeps through its session and wakes up."""
    with Service(kafka.cluster, prefix, tmp_path, partitions=6, tags=TAGS) as service:
        numbers = itertools.count(1)

        def order() -> None:
            """Another order of every user, committed: from now on nobody may know less."""
            number = next(numbers)
            service.send(orders(number))
            service.changes.read()
            service.wait_until(lambda: committed() >= number * len(USERS), "orders committed")
            askers.floor = number

        def committed() -> float:
            there = [w for w in service.workers.values() if w.running and w not in asleep]
            return sum(worker.metric("tagstream_committed_offset") for worker in there)

        asleep: list[Worker] = []
        askers = Askers(service)
        service.start("a", "b")
        order()
        with askers.asking():
            askers.more()
            service.start("c")
            service.wait_shares(2, 2, 2)
            order()
            askers.more()

            service.workers["b"].kill()
            askers.more()  # while its partitions are nobody's
            service.wait_shares(3, 3)
            order()
            askers.more()
            service.start("b")
            service.wait_shares(2, 2, 2)
            askers.more()

            service.workers["c"].stop()
            service.wait_shares(3, 3)
            order()
            askers.more()
            service.start("c")
            service.wait_shares(2, 2, 2)

            sleeper = service.workers["a"]
            sleeper.pause()
            asleep.append(sleeper)
            service.wait_until(
                lambda: service.workers["b"].partitions() + service.workers["c"].partitions() == 6,
                "all partitions with the others",
            )
            order()
            sleeper.resume()
            for user in itertools.chain(USERS, USERS, USERS):
                askers.look_up(sleeper, user)
            asleep.clear()
            service.wait_shares(2, 2, 2)
            order()
            askers.more()
        assert askers.wrong == []


def events(worker: Worker) -> Iterator[tuple[str, Any]]:
    """What a browser hears from a worker."""
    url = f"http://127.0.0.1:{worker.port}/live"
    with requests.get(url, stream=True, timeout=DEADLINE_S) as answer:
        kind = ""
        for line in answer.iter_lines(decode_unicode=True):
            field, _, value = line.partition(": ")
            if field == "event":
                kind = value
            elif field == "data":
                yield kind, json.loads(value)


def test_whoever_watches_one_worker_sees_all(kafka: Kafka, prefix: str, tmp_path: Path) -> None:
    """Every partition's state and every user's change; and who is not heard any more."""
    with Service(kafka.cluster, prefix, tmp_path, tags=TAGS) as service:
        service.start("a", "b")
        service.wait_shares(2, 2)
        heard = events(service.workers["a"])
        partitions: dict[str, set[int]] = {}
        while sorted(map(len, partitions.values())) != [2, 2]:
            kind, said = next(heard)
            if kind == "state":
                partitions[said["worker"]] = {each["number"] for each in said["partitions"]}
        assert sorted(number for each in partitions.values() for number in each) == [0, 1, 2, 3]
        service.send(orders(1))
        buyers: list[str] = []
        while len(buyers) < len(USERS):
            kind, said = next(heard)
            if kind == "change" and said["tag"] == "buyer":
                buyers.append(said["user_id"])
        assert sorted(buyers) == sorted(USERS)
        service.workers["b"].kill()
        gone = next(said for kind, said in heard if kind == "gone")
        assert gone == {"worker": f"http://127.0.0.1:{service.workers['b'].port}"}
        heard.close()  # type: ignore[attr-defined]
