"""What no schema sees: whether the objects of an overlay mean each other.

``problems`` says in words what points at nothing: selectors, ports, volumes, names. A Secret
is made by people or by a controller and never kept with the manifests; it has to be named in
README.md instead.
"""

from collections.abc import Iterator
from typing import Any

from stream.settings import Settings, variable_of
from tests.k8s.manifests import ROOT, Object, of_kind, pods, quantity

WORKLOADS = ("StatefulSet", "Job")
PORT_NAME_LENGTH = 15


def problems(objects: list[Object]) -> list[str]:
    """One line each; none is the good case."""
    return [
        f"{item['kind']} {item['metadata']['name']}: {problem}"
        for item in objects
        for check in (_identity, _selectors, _ports, _volumes, _names, _quantities)
        for problem in check(item, objects)
    ]


def _identity(item: Object, objects: list[Object]) -> Iterator[str]:
    """Every object is in the overlay's one namespace."""
    if item["kind"] == "Namespace":
        return
    (namespace,) = of_kind(objects, "Namespace")
    if item["metadata"].get("namespace") != namespace["metadata"]["name"]:
        yield "it is not in the namespace"


def _selectors(item: Object, objects: list[Object]) -> Iterator[str]:
    """Whoever selects pods selects some, and a workload selects its own."""
    spec = item.get("spec", {})
    match item["kind"]:
        case "StatefulSet":
            labels = spec["template"]["metadata"]["labels"]
            if not _within(spec["selector"]["matchLabels"], labels):
                yield "its selector does not match its own pods"
            for spread in spec["template"]["spec"].get("topologySpreadConstraints", []):
                if not _within(spread["labelSelector"]["matchLabels"], labels):
                    yield f"it is spread over {spread['topologyKey']} by other pods than its own"
        case "Service":
            yield from _selects(spec["selector"], objects)
        case "PodDisruptionBudget" | "PodMonitor":
            yield from _selects(spec["selector"]["matchLabels"], objects)
        case "NetworkPolicy":
            yield from _selects(spec["podSelector"].get("matchLabels", {}), objects)
            if spec["podSelector"] == {} and (spec.get("ingress") or spec.get("egress")):
                yield "it allows something to every pod of the namespace"
            ruled = {kind for kind in ("Ingress", "Egress") if kind.lower() in spec}
            if not ruled <= set(spec["policyTypes"]):
                yield "it has rules that its policyTypes leave out"
            for peer in _peers(spec):
                selector = peer.get("podSelector", {}).get("matchLabels", {})
                ours = "namespaceSelector" not in peer and "tagstream-client" not in selector
                if ours and "podSelector" in peer:
                    yield from _selects(selector, objects)
        case "ScaledObject":
            target = spec["scaleTargetRef"]
            owners = of_kind(objects, target["kind"])
            if target["name"] not in _named(owners):
                yield f"there is no {target['kind']} {target['name']} to scale"
            elif any("replicas" in owner["spec"] for owner in owners):
                yield "both it and the manifest say how many replicas there are"


def _peers(policy: Object) -> Iterator[Object]:
    for rule in policy.get("ingress", []):
        yield from rule.get("from", [])
    for rule in policy.get("egress", []):
        yield from rule.get("to", [])


def _selects(selector: dict[str, str], objects: list[Object]) -> Iterator[str]:
    if not any(_within(selector, pod.labels) for pod in pods(objects)):
        yield f"it selects no pod: {selector}"


def _ports(item: Object, objects: list[Object]) -> Iterator[str]:
    """Names of ports exist where they are looked for, are short enough, and numbers are ports."""
    spec = item.get("spec", {})
    match item["kind"]:
        case "Service":
            ports = _ports_of(spec["selector"], objects)
            yield from _known((port["targetPort"] for port in spec["ports"]), ports)
            for port in spec["ports"]:
                yield from _legal(port["name"], port["port"])
                headless = spec.get("clusterIP") == "None"
                if headless and port["port"] != ports.get(port["targetPort"]):
                    yield f"headless, it cannot translate port {port['port']}"
        case "PodMonitor":
            ports = _ports_of(spec["selector"]["matchLabels"], objects)
            yield from _known((point["port"] for point in spec["podMetricsEndpoints"]), ports)
        case "NetworkPolicy":
            ports = _ports_of(spec["podSelector"].get("matchLabels", {}), objects)
            for rule in spec.get("ingress", []) + spec.get("egress", []):
                yield from _known((port["port"] for port in rule["ports"]), ports)
        case "StatefulSet" | "Job":
            for container in spec["template"]["spec"]["containers"]:
                ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
                for name, number in ports.items():
                    yield from _legal(name, number)
                if len(set(ports.values())) < len(container.get("ports", [])):
                    yield "two of its ports are one"
                probes = [container[key] for key in container if key.endswith("Probe")]
                yield from _known((probe["httpGet"]["port"] for probe in probes), ports)


def _ports_of(selector: dict[str, str], objects: list[Object]) -> dict[str, int]:
    """The ports by name of the pods that are selected."""
    return {
        name: number
        for pod in pods(objects)
        if _within(selector, pod.labels)
        for name, number in pod.ports.items()
    }


def _known(wanted: Any, ports: dict[str, int]) -> Iterator[str]:
    for port in wanted:
        if isinstance(port, str) and port not in ports:
            yield f"there is no port {port!r}"
        if isinstance(port, int) and not 0 < port < 65_536:
            yield f"{port} is no port"


def _legal(name: str, number: int) -> Iterator[str]:
    if len(name) > PORT_NAME_LENGTH:
        yield f"the port's name {name!r} is longer than {PORT_NAME_LENGTH}"
    yield from _known([number], {})


def _volumes(item: Object, objects: list[Object]) -> Iterator[str]:
    """What is mounted is there, what is there is mounted, and never by subPath."""
    if item["kind"] not in WORKLOADS:
        return
    spec = item["spec"]
    there = {volume["name"] for volume in spec["template"]["spec"].get("volumes", [])}
    there |= {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])}
    for container in spec["template"]["spec"]["containers"]:
        mounts = container.get("volumeMounts", [])
        mounted = {mount["name"] for mount in mounts}
        for name in sorted(mounted - there):
            yield f"it mounts {name}, which is no volume"
        for name in sorted(there - mounted):
            yield f"its volume {name} is mounted nowhere"
        for mount in mounts:
            if "subPath" in mount:
                yield f"{mount['name']} is mounted by subPath and would never change"


def _names(item: Object, objects: list[Object]) -> Iterator[str]:
    """What is referred to by name is in the overlay, or is a Secret that README.md names."""
    spec = item.get("spec", {})
    if item["kind"] == "Service":
        yield from _injects(item["metadata"]["name"])
    if item["kind"] == "ScaledObject":
        for trigger in spec["triggers"]:
            name = trigger["authenticationRef"]["name"]
            if name not in _named(of_kind(objects, "TriggerAuthentication")):
                yield f"there is no TriggerAuthentication {name}"
    if item["kind"] == "TriggerAuthentication":
        yield from _secrets(reference["name"] for reference in spec["secretTargetRef"])
    if item["kind"] not in WORKLOADS:
        return
    headless = [
        service
        for service in of_kind(objects, "Service")
        if service["spec"].get("clusterIP") == "None"
    ]
    if item["kind"] == "StatefulSet" and spec["serviceName"] not in _named(headless):
        yield f"{spec['serviceName']} is no headless Service"
    pod = spec["template"]["spec"]
    if pod["serviceAccountName"] not in _named(of_kind(objects, "ServiceAccount")):
        yield f"there is no ServiceAccount {pod['serviceAccountName']}"
    volumes = pod.get("volumes", [])
    maps = [volume["configMap"]["name"] for volume in volumes if "configMap" in volume]
    for container in pod["containers"]:
        maps += [source["configMapRef"]["name"] for source in container.get("envFrom", [])]
    for name in maps:
        if name not in _named(of_kind(objects, "ConfigMap")):
            yield f"there is no ConfigMap {name}"
    yield from _secrets(volume["secret"]["secretName"] for volume in volumes if "secret" in volume)


def _secrets(names: Any) -> Iterator[str]:
    readme = (ROOT / "README.md").read_text()
    for name in names:
        if f"secret generic {name} " not in readme:
            yield f"README.md does not say how to make the Secret {name}"


def _injects(service: str) -> Iterator[str]:
    """Kubernetes may give every container the address of a Service as ``NAME_PORT``, and more."""
    prefix = service.replace("-", "_").upper()
    for name in Settings.__dataclass_fields__:
        if variable_of(name) in (f"{prefix}_PORT", f"{prefix}_SERVICE_HOST"):
            yield f"Kubernetes would set {variable_of(name)} for a Service of this name"


def _quantities(item: Object, objects: list[Object]) -> Iterator[str]:
    """Amounts of memory, disk and CPU are amounts."""
    spec = item.get("spec", {})
    if item["kind"] not in WORKLOADS:
        return
    needs = [container["resources"] for container in spec["template"]["spec"]["containers"]]
    needs += [claim["spec"]["resources"] for claim in spec.get("volumeClaimTemplates", [])]
    for need in needs:
        for amounts in need.values():
            for amount in amounts.values():
                try:
                    quantity(amount)
                except ValueError as error:
                    yield str(error)


def _named(objects: list[Object]) -> set[str]:
    return {item["metadata"]["name"] for item in objects}


def _within(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()
