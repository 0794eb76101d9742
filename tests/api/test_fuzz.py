"""The API fuzzed from its own document: a real worker, asked everything that can be said.

Valid requests have to be accepted or refused as described, invalid ones refused, and no answer
may differ from what the document says of its status, headers and content.
"""

import time
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import requests
import schemathesis
from hypothesis import given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from stream.schemas import OPENAPI
from tests.broker.worker import Worker

API: Any = schemathesis.openapi.from_path(OPENAPI)
#: What never ends is not for this kind of client.
OPERATIONS = {one.label: one for one in (found.ok() for found in API.get_all_operations())}
RIGHT, WRONG = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
ASKED = [(label, RIGHT) for label in sorted(OPERATIONS.keys() - {"GET /live"})]
#: Where something can be said that the document does not allow.
ASKED += [
    (label, WRONG) for label in ("GET /tags/{name}/users", "POST /events", "GET /page/{file}")
]
#: Valid by its schema is not all that is asked of an event: it must not be of the future, say.
STRICTER: dict[str, list[Any]] = {"POST /events": [positive_data_acceptance]}
EXAMPLES = 100


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """On its embedded broker, with a few users."""
    worker = Worker(tmp_path_factory.mktemp("api") / "worker", {}).start()
    try:
        worker.wait_ready()
        now_ms = time.time_ns() // 1_000_000
        order = {"type": "order", "amount": 99.5, "ts": now_ms}
        events = [{"event_id": "e", "user_id": user, **order} for user in ("u", "0", "张三")]
        url = f"http://127.0.0.1:{worker.port}/events"
        assert requests.post(url, orjson.dumps(events), timeout=30).status_code == 202
        yield worker
    finally:
        worker.stop()


@pytest.mark.parametrize(("label", "mode"), ASKED)
def test_every_answer_is_as_described(worker: Worker, label: str, mode: Any) -> None:
    """No 500, no status, header or content that the document does not name."""
    operation = OPERATIONS[label]
    with requests.Session() as session:

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
        def ask(case: Any) -> None:
            case.call_and_validate(
                base_url=f"http://127.0.0.1:{worker.port}",
                session=session,
                excluded_checks=STRICTER.get(label),
            )

        ask()
    assert "internal" not in worker.tail()
