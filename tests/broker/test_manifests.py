"""The pods of the manifests, as processes: with their commands, variables and definitions.

What differs from a pod is the machine: directories and ports are of this one, and the broker is
the tests' own, without a login.
"""

from pathlib import Path

import pytest

from stream.settings import variable_of
from tests.broker.cluster import free_port
from tests.broker.conftest import Kafka
from tests.broker.worker import Worker, tagstream, wait_until
from tests.k8s.manifests import K8S, Object, pods, render, worker

ELSEWHERE = ("security_protocol", "sasl_", "ssl_")


def variables(objects: list[Object], erase_key: Path) -> dict[str, str]:
    """What a worker's process finds, with this machine's files and ports."""
    erase_key.write_text("of all workers the same")
    found = worker(objects).environment(objects)
    here = {
        "tags": str(K8S / "base/tags.yaml"),
        "web_host": "127.0.0.1",
        "metrics_port": str(free_port()),
        "erase_key_file": str(erase_key),
    }
    found |= {
        variable_of(name): value for name, value in here.items() if variable_of(name) in found
    }
    left = tuple(map(variable_of, ELSEWHERE))
    return {name: value for name, value in found.items() if not name.startswith(left)}


@pytest.mark.kubectl
def test_the_development_overlay_runs_and_ends_in_order(tmp_path: Path) -> None:
    """With nothing else, and metrics on the port that Prometheus is told."""
    settings = variables(render("dev"), tmp_path / "key")
    pod = Worker(tmp_path / "tagstream-0", settings).start().wait_ready()
    scraped = Worker(tmp_path, {})
    scraped.port = int(settings[variable_of("metrics_port")])
    assert scraped.get("/metrics")[0] == 200
    assert scraped.get("/users/ann")[0] == 404
    pod.stop()


@pytest.mark.broker
@pytest.mark.kubectl
def test_a_pod_of_production_that_is_replaced_has_its_partitions_back_and_moves_no_other(
    kafka: Kafka, prefix: str, tmp_path: Path
) -> None:
    """The Job makes the topics; then one of two workers ends as in an update, and returns."""
    objects = render("prod")
    (job,) = (pod for pod in pods(objects) if pod.owner["kind"] == "Job")
    settings = variables(objects, tmp_path / "key") | {
        "TAGSTREAM_BROKER": f"kafka://{kafka.bootstrap}",
        "TAGSTREAM_TOPIC_PREFIX": prefix,
    }
    made = tagstream(*job.container["args"], settings=settings)
    assert made.returncode == 0, made.stderr
    first, second = (
        Worker(tmp_path / f"tagstream-{number}", settings | {"TAGSTREAM_METRICS_PORT": "0"})
        for number in range(2)
    )
    try:
        first.start().wait_ready()
        second.start().wait_ready()
        shares = [4, 4]
        wait_until(lambda: [first.partitions(), second.partitions()] == shares, "equal shares")
        rebalances = first.metric("tagstream_rebalances_total")
        second.stop()
        second.start().wait_ready()
        assert [first.partitions(), second.partitions()] == shares
        assert first.metric("tagstream_rebalances_total") == rebalances
    finally:
        for pod in (first, second):
            if pod.running:
                pod.stop()
