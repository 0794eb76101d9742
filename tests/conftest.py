"""Tests that need what a machine may not have are left out, aloud, where it does not have it.

They are deselected, not skipped: a skip is a test that somebody has to look at. Under
CI=true nothing may be left out, so that a green run means that all of them passed.
"""

import os
from collections.abc import Callable

import pytest

from tests.broker import cluster
from tests.k8s import tools
from tests.k8s.control_plane import cluster as control_plane
from tests.observability import prometheus
from tests.page import browser

#: By marker: what its tests need, and what of that this machine lacks, with the remedy; None
#: where it lacks nothing.
NEEDS: dict[str, tuple[str, Callable[[], str | None]]] = {
    "broker": ("a real Apache Kafka", cluster.missing),
    "browser": ("Chromium", browser.missing),
    "kubectl": ("kubectl", tools.missing),
    "control_plane": ("a Kubernetes control plane", control_plane.missing),
    "prometheus": ("Prometheus", prometheus.missing),
}
LEFT_OUT = pytest.StashKey[list[str]]()


@pytest.hookimpl(trylast=True)  # after -m and -k: what nobody asked for is not left out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = config.stash.setdefault(LEFT_OUT, [])
    for marker, (need, missing) in NEEDS.items():
        needing = [item for item in items if item.get_closest_marker(marker)]
        lacks = missing() if needing else None
        if lacks is None:
            continue
        left_out.append(f"{len(needing)} tests that need {need}: {lacks}")
        items[:] = [item for item in items if item not in needing]
        config.hook.pytest_deselected(items=needing)
    if left_out and os.environ.get("CI") == "true":
        raise pytest.UsageError(
            f"CI=true leaves nothing out, and this would be: {'; '.join(left_out)}"
        )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for left_out in terminalreporter.config.stash.get(LEFT_OUT, []):
        terminalreporter.write_line(f"left out: {left_out}", yellow=True)
