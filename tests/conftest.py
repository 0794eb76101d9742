"""Tests that need a real Apache Kafka are left out, aloud, where it cannot run.

They are deselected, not skipped: a skip is a test that somebody has to look at. Under
CI=true nothing may be left out, so that a green run means that all of them passed.
"""

import os

import pytest

from tests.broker import cluster

LEFT_OUT = pytest.StashKey[str]()


@pytest.hookimpl(trylast=True)  # after -m and -k: what nobody asked for is not left out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    on_broker = [item for item in items if item.get_closest_marker("broker")]
    lacks = cluster.missing() if on_broker else None
    if lacks is None:
        return
    left_out = f"{len(on_broker)} tests that need a real Apache Kafka: {lacks}"
    if os.environ.get("CI") == "true":
        raise pytest.UsageError(f"CI=true leaves nothing out, and this would be: {left_out}")
    config.stash[LEFT_OUT] = left_out
    items[:] = [item for item in items if item not in on_broker]
    config.hook.pytest_deselected(items=on_broker)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    left_out = terminalreporter.config.stash.get(LEFT_OUT, None)
    if left_out:
        terminalreporter.write_line(f"left out: {left_out}", yellow=True)
