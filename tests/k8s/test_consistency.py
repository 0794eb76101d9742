"""What the manifests say and what the program does agree, in every overlay."""

import re
from dataclasses import fields
from urllib.parse import urlsplit

import pytest

from stream import data
from stream.app import GROUP
from stream.commands.worker import SHUTDOWN_S
from stream.domains import discover
from stream.rules import load
from stream.settings import PROCESS_MB, Settings, variable_of
from stream.watchdog import STUCK_AFTER_S
from tests.k8s.manifests import (
    K8S,
    OVERLAYS,
    Object,
    of_kind,
    pods,
    quantity,
    render,
    the,
    worker,
)

PAGE_CACHE = 1.25
"""Of what the process may take: RocksDB's files are read through the page cache."""


def test_every_variable_is_a_setting_that_its_program_takes(objects):
    """The settings are really loaded from what the pod's process would find."""
    known = {variable_of(declared.name) for declared in fields(Settings)}
    for pod in pods(objects):
        environment = pod.environment(objects)
        assert environment.keys() <= known, pod.place
        assert pod.settings(objects).partitions == 8


def test_the_worker_and_the_job_that_makes_its_topics_mean_the_same_broker(objects):
    """By the same variables, the same Secret at the same place."""
    means = {(pod.settings(objects).broker, pod.container["image"]) for pod in pods(objects)}
    assert len(means) == 1
    for pod in pods(objects):
        settings = pod.settings(objects)
        assert pod.container["args"] == ["topics" if pod.owner["kind"] == "Job" else "worker"]
        for path in (settings.sasl_password_file, settings.ssl_cafile):
            assert path is None or str(path.parent) in mounts(pod.container)


def test_an_embedded_broker_has_one_worker_and_no_job(objects):
    """And a Kafka has the Job that makes its topics."""
    embedded = worker(objects).settings(objects).embedded
    assert len(of_kind(objects, "Job")) == (0 if embedded else 1)
    if embedded:
        assert the(objects, "StatefulSet")["spec"]["replicas"] == 1


def test_paths_in_the_settings_are_mounted_and_only_data_and_tmp_can_be_written(objects):
    """The root file system is read-only."""
    pod = worker(objects)
    settings, mounted = pod.settings(objects), mounts(pod.container)
    assert mounted[str(settings.data_dir)]["name"] == "data"
    assert mounted[str(settings.tags.parent)]["name"] == "tags"
    if settings.erase_key_file:
        assert mounted[str(settings.erase_key_file.parent)]["name"] == "erase"
    writable = {path for path, mount in mounted.items() if not mount.get("readOnly")}
    assert writable == {str(settings.data_dir), "/tmp"}


def mounts(container: Object) -> dict[str, Object]:
    """The mounts by path."""
    return {mount["mountPath"]: mount for mount in container["volumeMounts"]}


def test_other_workers_find_a_worker_where_it_says_it_is(objects):
    """By its own name under the headless Service, on the port that HTTP listens on."""
    pod = worker(objects)
    settings = pod.settings(objects)
    stateful = the(objects, "StatefulSet")
    url = urlsplit(settings.worker_url)
    assert url.hostname == f"{settings.instance_id}.{stateful['spec']['serviceName']}"
    assert settings.instance_id == "tagstream-0"
    assert url.port == settings.web_port
    assert pod.ports == {"http": settings.web_port, "metrics": settings.metrics_port}
    assert settings.web_host == "0.0.0.0"


def test_a_worker_may_take_all_the_time_that_it_takes_to_stop(objects):
    """Before it would be killed, and before the group gives its partitions away."""
    pod = worker(objects)
    before_s = pod.container["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace_s = pod.spec["terminationGracePeriodSeconds"]
    assert grace_s >= before_s + SHUTDOWN_S + 30
    session_s = pod.settings(objects).session_timeout_ms / 1000
    assert session_s >= grace_s + 60  # and to start again
    assert the(objects, "StatefulSet")["spec"]["minReadySeconds"] >= 10


def test_memory_suffices_for_the_budget_the_process_and_the_page_cache(objects):
    """And is what is asked for: a worker never lives on memory that others may want back."""
    for pod in pods(objects):
        limits, requests = (pod.container["resources"][kind] for kind in ("limits", "requests"))
        assert limits["memory"] == requests["memory"]
        assert "cpu" not in limits
        assert "cpu" in requests
        assert quantity(requests["ephemeral-storage"]) <= quantity(limits["ephemeral-storage"])
    pod = worker(objects)
    settings = pod.settings(objects)
    limit_mb = quantity(pod.container["resources"]["limits"]["memory"]) / 2**20
    assert settings.memory_limit_mb == limit_mb
    assert limit_mb >= (settings.memory_mb + PROCESS_MB) * PAGE_CACHE


def test_there_are_no_more_workers_than_partitions_and_each_has_as_many(objects):
    """A divisor of the partitions, where their number is fixed."""
    partitions = worker(objects).settings(objects).partitions
    replicas = the(objects, "StatefulSet")["spec"].get("replicas")
    scaled = of_kind(objects, "ScaledObject")
    assert (replicas is None) == bool(scaled)
    assert replicas is None or partitions % replicas == 0
    for item in scaled:
        spec = item["spec"]
        assert 2 <= spec["minReplicaCount"] <= spec["maxReplicaCount"] == partitions


def test_what_scales_looks_at_our_group_on_our_broker(objects):
    """With the login that the workers use."""
    settings = worker(objects).settings(objects)
    for item in of_kind(objects, "ScaledObject"):
        (trigger,) = item["spec"]["triggers"]
        asked = trigger["metadata"]
        assert asked["consumerGroup"] == settings.topic(GROUP)
        assert asked["bootstrapServers"].split(",") == settings.bootstrap_servers
        assert asked["sasl"] == settings.sasl_mechanism.lower().replace("-sha-", "_sha")
        assert (asked["tls"] == "enable") == settings.security_protocol.endswith("SSL")


def test_policies_let_the_worker_reach_its_broker(objects):
    """The port that the settings name is the one that is open."""
    settings = worker(objects).settings(objects)
    policy = the(objects, "NetworkPolicy", "tagstream-egress")
    open_ports = {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}
    for server in settings.bootstrap_servers:
        host, _, port = server.rpartition(":")
        assert int(port) in open_ports
        (namespace,) = (
            peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
            for rule in policy["spec"]["egress"]
            for peer in rule["to"]
            if int(port) in {opened["port"] for opened in rule["ports"]}
        )
        assert host.split(".")[1] == namespace


def test_probes_ask_what_they_are_for(objects):
    """Recovery holds up readiness alone, and liveness gives up long before it is asked to."""
    container = worker(objects).container
    assert container["startupProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    liveness = container["livenessProbe"]
    assert liveness["httpGet"]["path"] == "/healthz"
    assert liveness["periodSeconds"] * liveness["failureThreshold"] < STUCK_AFTER_S


def test_nothing_runs_as_root_writes_to_its_image_or_talks_to_the_api(objects):
    """Of every pod."""
    for pod in pods(objects):
        assert pod.spec["securityContext"]["runAsNonRoot"] is True
        assert pod.spec["securityContext"]["runAsUser"] >= 10_000
        assert pod.spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod.container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert pod.spec["automountServiceAccountToken"] is False
        assert pod.spec["enableServiceLinks"] is False


def test_settings_roll_the_pods_and_definitions_do_not(objects):
    """One ConfigMap's name depends on what is in it, the other's stays."""
    pod = worker(objects)
    (settings,) = (source["configMapRef"]["name"] for source in pod.container["envFrom"])
    assert re.fullmatch(r"tagstream-settings-[a-z0-9]{10}", settings)
    (tags,) = (v["configMap"]["name"] for v in pod.spec["volumes"] if "configMap" in v)
    assert tags == "tagstream-tags"


def test_the_definitions_are_the_packaged_ones():
    """A build's own, checked like any other; an overlay replaces them."""
    remedy = "cp stream/data/tags.yaml k8s/base/tags.yaml"
    assert (K8S / "base/tags.yaml").read_bytes() == data.TAGS.read_bytes(), remedy
    assert load(K8S / "base/tags.yaml", discover()).warnings == ()


@pytest.mark.kubectl
def test_production_is_redundant_and_pinned():
    """Several workers on as many nodes, an image that cannot change, and its metrics watched."""
    assert {"dev", "prod"} <= set(OVERLAYS)
    objects = render("prod")
    pod = worker(objects)
    assert the(objects, "StatefulSet")["spec"]["replicas"] >= 2
    by_host = {spread["topologyKey"]: spread for spread in pod.spec["topologySpreadConstraints"]}
    assert by_host["kubernetes.io/hostname"]["whenUnsatisfiable"] == "DoNotSchedule"
    assert "@sha256:" in pod.container["image"]
    assert len(of_kind(objects, "PodMonitor", "PrometheusRule")) == 2
    dashboard = the(objects, "ConfigMap", "tagstream-dashboard")
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
