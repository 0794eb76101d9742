"""Every object of every overlay is what the API of its kind allows, in letter and in form."""

import copy
from typing import Any

import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as prometheus
from pydantic import BaseModel, ValidationError
from yamllint import linter
from yamllint.config import YamlLintConfig

from tests.k8s.manifests import K8S, NEWEST, OLDEST, Object, of_kind, the

#: Kinds that Kubernetes gets from operators, with a model of each.
CUSTOM: dict[str, type[BaseModel]] = {
    "PodMonitor": prometheus.PodMonitor,
    "PrometheusRule": prometheus.PrometheusRule,
    "ScaledObject": keda.ScaledObject,
    "TriggerAuthentication": keda.TriggerAuthentication,
}
FILES = sorted(K8S.rglob("*.yaml"))


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_is_valid_in_the_oldest_and_the_newest_kubernetes(objects, version):
    """No field that the schema of that version does not know."""
    for item in objects:
        if item["kind"] not in CUSTOM:
            kubernetes_validate.validate(item, version, strict=True)


def test_every_custom_object_is_valid_and_keeps_every_field(objects):
    """A field that the model does not know is lost on the way through it."""
    for item in objects:
        if item["kind"] in CUSTOM:
            assert through(item) == item


def through(item: Object) -> Any:
    """The object as its model understands it."""
    model = CUSTOM[item["kind"]].model_validate(item)
    return model.model_dump(mode="json", by_alias=True, exclude_unset=True)


def test_a_misspelt_field_is_found_in_either(objects):
    """The two tests above can fail."""
    wrong = copy.deepcopy(the(objects, "StatefulSet"))
    wrong["spec"]["serviceNme"] = wrong["spec"].pop("serviceName")
    with pytest.raises(kubernetes_validate.ValidationError, match="serviceNme"):
        kubernetes_validate.validate(wrong, OLDEST, strict=True)
    for item in of_kind(objects, "PodMonitor"):
        item["spec"]["podMetricsEndpoints"][0]["honourLabels"] = True
        assert through(item) != item
        item["spec"]["podMetricsEndpoints"] = "metrics"
        with pytest.raises(ValidationError):
            through(item)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(K8S)))
def test_a_file_is_tidy_holds_one_object_and_is_used(path):
    """yamllint has nothing to say, and the kustomization beside it names the file."""
    found = linter.run(path.read_text(), YamlLintConfig(file=str(K8S / ".yamllint")), str(path))
    assert [str(problem) for problem in found] == []
    documents = list(yaml.safe_load_all(path.read_text()))
    assert len(documents) == 1
    used = path.with_name("kustomization.yaml").read_text()
    assert path.name == "kustomization.yaml" or path.name in used
