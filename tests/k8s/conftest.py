"""What the tests of the manifests share: each runs on every overlay, as rendered."""

from pathlib import Path

import pytest

from tests.k8s.manifests import OVERLAYS, Object, render

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything that asks for an overlay needs kubectl."""
    for item in items:
        if HERE in item.path.parents and "objects" in getattr(item, "fixturenames", ()):
            item.add_marker("kubectl")


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    """Its name."""
    name: str = request.param
    return name


@pytest.fixture
def objects(overlay: str) -> list[Object]:
    """Its objects, to be changed at will."""
    return render(overlay)
