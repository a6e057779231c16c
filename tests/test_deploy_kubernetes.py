"""The manifests of deploy/kubernetes, as kustomize builds them: against the real schemas, and what keeps them safe."""

import copy
import functools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

Object = dict[str, Any]  # Any: what YAML holds

ROOT = Path(__file__).parents[1]
KUBERNETES = ROOT / "deploy/kubernetes"
SCHEMAS = ROOT.resolve().parent / "shared/schemas"  # of KubeRay and Prefect; they are not committed
BUILDS = ["base", "overlays/local", "overlays/gpu", "overlays/spot", "job"]
CRDS = {"RayCluster": "ray.io_rayclusters.yaml", "RayJob": "ray.io_rayjobs.yaml"}
VALUES = ["prefect-server", "prefect-worker"]
OF_OPERATORS = {*CRDS, "PodMonitor"}
VERSION = "1.34"  # of Kubernetes

KUSTOMIZE = next(
    ([*command] for command in (["kustomize", "build"], ["kubectl", "kustomize"]) if shutil.which(command[0])), None
)
built_only = pytest.mark.skipif(KUSTOMIZE is None, reason="neither kustomize nor kubectl is installed")


def schema_file(name: str) -> Path:
    if not (SCHEMAS / name).is_file():
        pytest.skip(f"there is no {SCHEMAS / name}: the schemas of KubeRay and Prefect are not committed")
    return SCHEMAS / name


@functools.cache
def build(folder: str) -> tuple[Object, ...]:
    """The objects that kustomize makes of a folder."""
    assert KUSTOMIZE is not None
    done = subprocess.run([*KUSTOMIZE, KUBERNETES / folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower(), done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def one(folder: str, kind: str, name: str = "") -> Object:
    [found] = [thing for thing in build(folder) if thing["kind"] == kind and name in ("", thing["metadata"]["name"])]
    return found


def put(thing: Object, path: str, value: object) -> None:
    """Set what lies at a path of names and numbers, with a dot between two."""
    *way, name = path.split(".")
    functools.reduce(lambda part, step: part[int(step) if step.isdigit() else step], way, thing)[name] = value


def hardened(schema: Any) -> Any:
    """The schema, with every object whose properties are listed closed to others: a misspelt name is an error."""
    if isinstance(schema, list):
        return [hardened(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: hardened(value) for key, value in schema.items()}
    if isinstance(closed.get("properties"), dict) and "type" in closed and "additionalProperties" not in closed:
        closed["additionalProperties"] = False
    return closed


def validate(thing: Object, schema: Object) -> None:
    """`jsonschema.validate` would check the schema too, each time: a megabyte of it."""
    jsonschema.Draft7Validator(schema).validate(thing)


@functools.cache
def schema_of(kind: str) -> Object:
    """Of the version v1 of one of KubeRay's kinds. What every Kubernetes object has beside it is left open."""
    definition = yaml.safe_load(schema_file(CRDS[kind]).read_text())
    [found] = [
        version["schema"]["openAPIV3Schema"] for version in definition["spec"]["versions"] if version["name"] == "v1"
    ]
    schema: Object = hardened(found)
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def cluster_of(thing: Object) -> Object:
    spec: Object = thing["spec"] if thing["kind"] == "RayCluster" else thing["spec"]["rayClusterSpec"]
    return spec


def clusters(folder: str) -> Iterator[Object]:
    yield from (cluster_of(thing) for thing in build(folder) if thing["kind"] in CRDS)


def templates(folder: str) -> Iterator[tuple[str, Object]]:
    """Every pod template that a build holds, with where it is."""
    for thing in build(folder):
        yield from _templates(thing, thing["kind"])


def _templates(part: Any, where: str) -> Iterator[tuple[str, Object]]:
    if isinstance(part, dict):
        if isinstance(part.get("spec"), dict) and "containers" in part["spec"]:
            yield where, part
        for key, value in part.items():
            yield from _templates(value, f"{where}.{key}")
    elif isinstance(part, list):
        for number, value in enumerate(part):
            yield from _templates(value, f"{where}[{number}]")


def dangers(pod: Object) -> list[str]:
    """What a pod's spec leaves open."""
    security = pod.get("securityContext", {})
    found = [
        name
        for name, is_open in {
            "may run as root": security.get("runAsNonRoot") is not True or security.get("runAsUser", 0) == 0,
            "has no seccomp profile": security.get("seccompProfile", {}).get("type") != "RuntimeDefault",
            "gets a token for Kubernetes": pod.get("automountServiceAccountToken") is not False,
            "shares the node's namespaces": any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")),
            "mounts the node's disk": any("hostPath" in volume for volume in pod.get("volumes", [])),
            "may fill the node's disk": any(
                "sizeLimit" not in volume.get("emptyDir", {"sizeLimit": 0}) for volume in pod.get("volumes", [])
            ),
        }.items()
        if is_open
    ]
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        found += [f"{container['name']} {danger}" for danger in container_dangers(container)]
    return found


def container_dangers(container: Object) -> list[str]:
    """What a container's spec leaves open."""
    security = container.get("securityContext", {})
    limits = container.get("resources", {}).get("limits", {})
    secret_like = re.compile(r"PASSWORD|SECRET|TOKEN|AUTH_STRING|ACCESS_KEY|CONNECTION", re.IGNORECASE)
    literals = [env["name"] for env in container.get("env", []) if "value" in env and secret_like.search(env["name"])]
    return [
        name
        for name, is_open in {
            "may write to its root": security.get("readOnlyRootFilesystem") is not True,
            "may gain privileges": security.get("allowPrivilegeEscalation") is not False or "privileged" in security,
            "keeps capabilities": security.get("capabilities") != {"drop": ["ALL"]},
            "has no limits": {"cpu", "memory", "ephemeral-storage"} - set(limits) != set(),
            "has no pinned image": not is_pinned(container["image"]),
            "names a secret's value": bool(literals),
        }.items()
        if is_open
    ]


def is_pinned(image: str) -> bool:
    """Whether an image is named by a digest, or by a tag that is a release."""
    return (
        "@sha256:" in image
        or re.fullmatch(r"[\w.-]*\d+\.\d+\.\d+[\w.-]*", image.rpartition("/")[2].partition(":")[2]) is not None
    )


@built_only
@pytest.mark.parametrize("folder", BUILDS)
def test_every_object_is_what_kubernetes_takes(folder: str) -> None:
    kinds = {thing["kind"] for thing in build(folder)}
    for thing in build(folder):
        if thing["kind"] not in OF_OPERATORS:
            kubernetes_validate.validate(copy.deepcopy(thing), VERSION, strict=True)

    assert kinds >= {"Namespace", "NetworkPolicy", "ServiceAccount", "ConfigMap"}


@built_only
@pytest.mark.parametrize("folder", BUILDS)
def test_every_ray_object_is_what_kuberay_takes(folder: str) -> None:
    for thing in build(folder):
        if thing["kind"] in CRDS:
            validate(thing, schema_of(thing["kind"]))


@built_only
@pytest.mark.parametrize("folder", BUILDS)
def test_every_pod_of_ray_is_one_that_kubernetes_takes(folder: str) -> None:
    found = list(templates(folder))
    for _, template in found:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"]}
        kubernetes_validate.validate(copy.deepcopy(pod), VERSION, strict=True)

    assert len(found) == 3


@pytest.mark.parametrize("chart", VALUES)
def test_the_values_of_prefects_charts_are_what_they_take(chart: str) -> None:
    schema = json.loads(schema_file(f"{chart}.values.schema.json").read_text())

    validate(values(chart), hardened(schema))


def test_the_flows_deployments_are_what_prefect_takes() -> None:
    schema = json.loads(schema_file("prefect.yaml.schema.json").read_text())

    validate(yaml.safe_load((ROOT / "deploy/prefect.yaml").read_text()), schema)


@built_only
@pytest.mark.parametrize(
    "path",
    [
        "authOption",
        "headGroupSpec.templat",
        "workerGroupSpecs.0.maxReplica",
        "autoscalerOptions.securityContext.readOnly",
    ],
)
def test_a_misspelt_name_is_found(path: str) -> None:
    thing = copy.deepcopy(one("base", "RayCluster"))
    put(thing["spec"], path, 1)

    with pytest.raises(jsonschema.ValidationError):
        validate(thing, schema_of("RayCluster"))


@built_only
@pytest.mark.parametrize("folder", BUILDS)
def test_no_pod_of_ray_leaves_anything_open(folder: str) -> None:
    found = {where: dangers(template["spec"]) for where, template in templates(folder)}

    assert len(found) == 3
    assert [(where, danger) for where, open_ in found.items() for danger in open_] == []


@built_only
@pytest.mark.parametrize(
    ("path", "value", "danger"),
    [
        ("securityContext.runAsNonRoot", False, "may run as root"),
        ("securityContext.runAsUser", 0, "may run as root"),
        ("securityContext.seccompProfile", {"type": "Unconfined"}, "has no seccomp profile"),
        ("automountServiceAccountToken", True, "gets a token for Kubernetes"),
        ("hostNetwork", True, "shares the node's namespaces"),
        ("volumes", [{"name": "tmp", "emptyDir": {}}], "may fill the node's disk"),
        ("volumes", [{"name": "root", "hostPath": {"path": "/"}}], "mounts the node's disk"),
        ("containers.0.securityContext.readOnlyRootFilesystem", False, "ray-worker may write to its root"),
        ("containers.0.securityContext.allowPrivilegeEscalation", True, "ray-worker may gain privileges"),
        ("containers.0.securityContext.capabilities", {"drop": ["NET_RAW"]}, "ray-worker keeps capabilities"),
        ("containers.0.resources.limits", {"cpu": 1, "memory": "1Gi"}, "ray-worker has no limits"),
        ("containers.0.image", "degrain", "ray-worker has no pinned image"),
        ("containers.0.image", "degrain:latest", "ray-worker has no pinned image"),
        ("containers.0.env", [{"name": "RAY_AUTH_TOKEN", "value": "abc"}], "ray-worker names a secret's value"),
    ],
)
def test_what_is_left_open_is_found(path: str, value: object, danger: str) -> None:
    pod = copy.deepcopy(cluster_of(one("base", "RayCluster"))["workerGroupSpecs"][0]["template"]["spec"])
    put(pod, path, value)

    assert danger in dangers(pod)


@built_only
@pytest.mark.parametrize("folder", BUILDS)
def test_a_token_for_kubernetes_is_in_the_autoscalers_container_alone(folder: str) -> None:
    for cluster in clusters(folder):
        pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        mounts = [
            mount["name"]
            for pod in pods
            for one in pod["template"]["spec"]["containers"]
            for mount in one["volumeMounts"]
        ]
        autoscaler = cluster["autoscalerOptions"]

        assert "kubernetes-token" not in mounts
        assert "kubernetes-token" in [mount["name"] for mount in autoscaler["volumeMounts"]]
        assert container_dangers({"name": "autoscaler", "image": "degrain:0.1.0", **autoscaler}) == []
    accounts = [thing for thing in build(folder) if thing["kind"] == "ServiceAccount"]
    assert [account["automountServiceAccountToken"] for account in accounts] == [False] * 3


@built_only
@pytest.mark.parametrize("folder", BUILDS)
def test_ray_asks_for_its_token_and_keeps_photos_off_its_head(folder: str) -> None:
    [cluster] = clusters(folder)

    assert cluster["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["autoscalerOptions"]["version"] == "v2"


@built_only
@pytest.mark.parametrize("folder", BUILDS)
def test_it_has_the_ray_that_the_tests_have(folder: str) -> None:
    [cluster] = clusters(folder)
    pinned = dict(
        re.findall(r"^(ray|prefect)(?:\[.*\])?==(\S+)", (ROOT / "deploy/constraints.txt").read_text(), re.MULTILINE)
    )

    assert cluster["rayVersion"] == pinned["ray"]
    assert values("prefect-server")["global"]["prefect"]["image"]["prefectTag"].startswith(pinned["prefect"])


@built_only
@pytest.mark.parametrize("folder", BUILDS)
def test_a_worker_that_is_told_to_go_has_time_to_finish(folder: str) -> None:
    for cluster in clusters(folder):
        for group in cluster["workerGroupSpecs"]:
            pod = group["template"]["spec"]
            command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
            volumes = {volume["name"]: volume for volume in pod["volumes"]}
            folders = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
            script = Path(command[1])

            assert 10 <= pod["terminationGracePeriodSeconds"] - int(command[2]) <= 30  # for Ray to end by itself
            assert (
                script.name
                in one(folder, "ConfigMap", volumes[folders[str(script.parent)]]["configMap"]["name"])["data"]
            )


@built_only
@pytest.mark.parametrize("folder", BUILDS)
def test_whatever_is_mounted_or_run_as_is_there(folder: str) -> None:
    accounts = {thing["metadata"]["name"] for thing in build(folder) if thing["kind"] == "ServiceAccount"}
    for _, template in templates(folder):
        pod = template["spec"]
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}

        assert mounted <= {volume["name"] for volume in pod["volumes"]}
        assert pod["serviceAccountName"] in accounts


@built_only
@pytest.mark.parametrize("folder", BUILDS)
def test_what_no_policy_names_does_not_flow(folder: str) -> None:
    policies = [thing for thing in build(folder) if thing["kind"] == "NetworkPolicy"]
    closed = {
        policy["metadata"]["namespace"]
        for policy in policies
        if policy["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    }
    namespaces = {
        thing["metadata"]["name"]: thing["metadata"]["labels"]
        for thing in build(folder)
        if thing["kind"] == "Namespace"
    }

    assert closed == set(namespaces)
    assert all(labels["pod-security.kubernetes.io/enforce"] == "restricted" for labels in namespaces.values())
    assert {"namespace": "degrain"}.items() <= one(folder, "NetworkPolicy", "ray")["metadata"].items()


def blocks(policy: Object) -> Iterator[tuple[str, Object]]:
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        for rule in policy["spec"].get(direction, []):
            assert rule.get(peers), f"a rule of {policy['metadata']['name']} is open to all"
            yield from ((direction, peer["ipBlock"]) for peer in rule[peers] if "ipBlock" in peer)


@built_only
@pytest.mark.parametrize("folder", BUILDS)
def test_nothing_comes_from_outside_and_nobody_reaches_the_nodes_metadata(folder: str) -> None:
    found = [block for thing in build(folder) if thing["kind"] == "NetworkPolicy" for block in blocks(thing)]

    assert {direction for direction, _ in found} == {"egress"}
    assert all("169.254.0.0/16" in block["except"] for _, block in found)


@built_only
def test_a_worker_that_was_taken_over_reaches_no_other_service_of_the_company() -> None:
    [block] = [block for _, block in blocks(one("base", "NetworkPolicy", "ray"))]

    assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"} <= set(block["except"])


@built_only
def test_policies_and_the_monitor_mean_pods_that_there_are() -> None:
    monitor = one("overlays/gpu", "PodMonitor")["spec"]
    for _, template in templates("overlays/gpu"):
        labels = template["metadata"]["labels"]
        ports = [port["name"] for container in template["spec"]["containers"] for port in container["ports"]]

        assert monitor["selector"]["matchLabels"].items() <= labels.items()
        assert {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]} <= set(ports)
        assert (
            one("overlays/gpu", "NetworkPolicy", "ray")["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
        )


@built_only
def test_the_dashboard_is_the_one_that_the_tests_know() -> None:
    shown = one("overlays/spot", "ConfigMap", "grafana-degrain")

    assert shown["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert shown["data"]["grafana-degrain.json"] == (ROOT / "deploy/monitoring/grafana-degrain.json").read_text()


@built_only
def test_a_one_off_job_brings_the_same_cluster_with_gpus_and_takes_it_away() -> None:
    job, cluster = one("job", "RayJob")["spec"], cluster_of(one("job", "RayJob"))
    pattern = cluster_of(one("base", "RayCluster"))

    assert [thing for thing in build("job") if thing["kind"] == "RayCluster"] == []
    assert job["shutdownAfterJobFinishes"]
    assert cluster["headGroupSpec"] == pattern["headGroupSpec"]
    assert [(group["groupName"], group["minReplicas"]) for group in cluster["workerGroupSpecs"]] == [
        ("cpu", 0),
        ("gpu", 4),
    ]


@built_only
def test_spot_machines_hold_workers_and_never_the_head() -> None:
    cluster = cluster_of(one("overlays/spot", "RayCluster"))
    worker = cluster["workerGroupSpecs"][0]["template"]["spec"]
    [term] = cluster["headGroupSpec"]["template"]["spec"]["affinity"]["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]["nodeSelectorTerms"]

    [label] = worker["nodeSelector"]
    assert term["matchExpressions"] == [{"key": label, "operator": "DoesNotExist"}]
    assert worker["tolerations"][0]["key"] == label
    assert worker["priorityClassName"] == one("overlays/spot", "PriorityClass")["metadata"]["name"]


def values(chart: str) -> Object:
    found: Object = yaml.safe_load((KUBERNETES / f"{chart}.values.yaml").read_text())
    return found


@pytest.mark.parametrize("chart", VALUES)
def test_prefects_pods_leave_nothing_open(chart: str) -> None:
    chart_values = values(chart)
    settings = chart_values[chart.removeprefix("prefect-")]
    image = settings.get("image") or chart_values["global"]["prefect"]["image"]
    container = {
        "name": chart,
        "image": f"{image['repository']}:{image['prefectTag']}",
        "env": settings.get("env", []) + settings.get("extraEnvVars", []),
        "resources": settings["resources"],
        "securityContext": {
            key: value
            for key, value in settings["containerSecurityContext"].items()
            if key not in ("runAsUser", "runAsNonRoot")
        },
    }
    pod = {
        "automountServiceAccountToken": False,  # by its account, which is not the chart's
        "securityContext": settings["podSecurityContext"],
        "containers": [container],
    }

    assert dangers(pod) == []
    assert chart_values["serviceAccount"] == {"create": False, "name": "flows"}


# What the charts set themselves: Helm 4 refuses a name that comes twice.
SET_BY_CHART = re.compile(
    r"HOME|PREFECT_(DEBUG_MODE|LOGGING_SERVER_LEVEL|API_\w+|SERVER_API_\w+|SERVER_DATABASE_\w+|UI_API_URL"
    r"|UI_STATIC_DIRECTORY|WORKER_\w+|KUBERNETES_\w+|INTEGRATIONS_KUBERNETES_\w+)"
)


def test_no_setting_of_a_chart_is_one_that_kubernetes_refuses_later() -> None:
    """The charts' schemas let both through."""
    server, worker = values("prefect-server")["server"], values("prefect-worker")["worker"]
    names = [variable["name"] for variable in server["env"] + worker["extraEnvVars"]]

    assert [name for name in names if SET_BY_CHART.fullmatch(name)] == []
    rolling = server["updateStrategy"].get("rollingUpdate", {})
    assert [value for value in rolling.values() if not re.fullmatch(r"\d+%", value)] == []


def test_prefect_asks_for_a_password_that_is_in_no_file() -> None:
    server, worker = values("prefect-server"), values("prefect-worker")
    auth = {"enabled": True, "existingSecret": "prefect-auth"}

    assert server["server"]["basicAuth"] == worker["worker"]["selfHostedServerApiConfig"]["basicAuth"] == auth
    assert set(server["externalDatabase"]) == {"existingSecret", "connectionStringSecretKey"}
    assert worker["role"] == worker["rolebinding"] == {"create": False}


def test_no_file_holds_a_secret() -> None:
    files = [path for path in (ROOT / "deploy").rglob("*") if path.suffix in (".yaml", ".yml")]
    holding = [
        path.name
        for path in files
        if re.search(r"kind: Secret\b|stringData:|BEGIN [A-Z ]*PRIVATE KEY|AKIA[0-9A-Z]{16}", path.read_text())
    ]

    assert len(files) >= 15
    assert holding == []


def test_the_runbook_names_only_files_that_are_there() -> None:
    runbook = (ROOT / "deploy/README.md").read_text()
    named = set(re.findall(r"(?:deploy|tests)/[\w./-]+\w", runbook)) | {
        f"deploy/{path}" for path in re.findall(r"\]\(([\w./-]+)\)", runbook)
    }

    assert len(named) >= 10
    assert [name for name in sorted(named) if not (ROOT / name).exists() and name != "deploy/.env"] == []
