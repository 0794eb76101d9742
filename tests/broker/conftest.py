"""What the tests on a real Apache Kafka share: one broker for all, fresh topics for each."""

import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.broker.cluster import Cluster


@dataclass(frozen=True, slots=True)
class Kafka:
    """The session's broker, with its SASL and TLS listeners."""

    cluster: Cluster

    @property
    def bootstrap(self) -> str:
        """Address of the plain listener, ``host:port``."""
        return self.cluster.bootstrap


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """One broker, up from the first test that asks for it to the end of the session."""
    with Cluster(tmp_path_factory.mktemp("kafka"), secure=True) as cluster:
        yield Kafka(cluster)


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A topic prefix that no other test has: legal in topic names, group ids and file names."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:60]
    return f"{name}-{uuid.uuid4().hex[:6]}-"
