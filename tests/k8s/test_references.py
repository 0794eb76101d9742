"""The objects of every overlay mean each other; what they could get wrong is found."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.k8s.manifests import Object, the
from tests.k8s.references import problems


def test_nothing_refers_to_what_is_not_there(objects):
    """Selectors, ports, volumes, names, amounts."""
    assert problems(objects) == []


def put(kind: str, *path: str | int, value: Any, name: str | None = None) -> Callable[..., None]:
    """A fault: ``value`` at ``path`` of the object of that kind."""

    def change(objects: list[Object]) -> None:
        place: Any = the(objects, kind, name)
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value

    return change


POD = ("spec", "template", "spec")
CONTAINER = (*POD, "containers", 0)
OTHER = {"app.kubernetes.io/name": "other"}


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (put("StatefulSet", "metadata", "namespace", value="default"), "not in the namespace"),
        (put("StatefulSet", "spec", "selector", "matchLabels", value=OTHER), "its own pods"),
        (
            put(
                "StatefulSet",
                *POD,
                *("topologySpreadConstraints", 0, "labelSelector", "matchLabels"),
                value=OTHER,
            ),
            "spread over kubernetes.io/hostname by other pods",
        ),
        (put("Service", "spec", "selector", value=OTHER, name="tagstream"), "selects no pod"),
        (put("PodDisruptionBudget", "spec", "selector", "matchLabels", value=OTHER), "no pod"),
        (
            put("NetworkPolicy", "spec", "podSelector", value={}, name="tagstream-egress"),
            "to every pod",
        ),
        (
            put("NetworkPolicy", "spec", "policyTypes", value=["Egress"], name="tagstream-workers"),
            "policyTypes leave out",
        ),
        (
            put(
                "NetworkPolicy",
                *("spec", "egress", 0, "to", 0, "podSelector", "matchLabels"),
                value=OTHER,
                name="tagstream-workers",
            ),
            "selects no pod",
        ),
        (
            put("Service", "spec", "ports", 0, "targetPort", value="web", name="tagstream"),
            "no port 'web'",
        ),
        (
            put("Service", "spec", "ports", 0, "port", value=80, name="tagstream-workers"),
            "cannot translate",
        ),
        (
            put("StatefulSet", *CONTAINER, "readinessProbe", "httpGet", "port", value="x"),
            "port 'x'",
        ),
        (
            put("StatefulSet", *CONTAINER, "ports", 0, "name", value="http-for-everyone"),
            "longer than 15",
        ),
        (put("StatefulSet", *CONTAINER, "ports", 1, "containerPort", value=6066), "are one"),
        (put("StatefulSet", *CONTAINER, "ports", 1, "containerPort", value=99_999), "is no port"),
        (put("StatefulSet", *CONTAINER, "volumeMounts", 0, "name", value="disk"), "mounts disk"),
        (put("StatefulSet", *CONTAINER, "volumeMounts", value=[]), "volume data is mounted nowh"),
        (put("StatefulSet", *CONTAINER, "volumeMounts", 0, "subPath", value="f"), "by subPath"),
        (put("StatefulSet", "spec", "serviceName", value="tagstream"), "no headless Service"),
        (put("StatefulSet", *POD, "serviceAccountName", value="x"), "no ServiceAccount x"),
        (
            put("StatefulSet", *CONTAINER, "envFrom", 0, "configMapRef", "name", value="x"),
            "no ConfigMap x",
        ),
        (
            put(
                "StatefulSet",
                *POD,
                "volumes",
                0,
                value={"name": "v", "secret": {"secretName": "s"}},
            ),
            "how to make the Secret s",
        ),
        (put("Service", "metadata", "name", value="tagstream-web", name="tagstream"), "WEB_PORT"),
        (
            put("StatefulSet", *CONTAINER, "resources", "limits", "memory", value="1Gib"),
            "no quantity: '1Gib'",
        ),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_a_fault_is_found(objects, fault, found):
    """Each of the faults that schemas let pass."""
    assert not any(found in problem for problem in problems(objects))
    fault(objects)
    assert any(found in problem for problem in problems(objects))
