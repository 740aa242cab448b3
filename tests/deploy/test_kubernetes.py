"""The overlays: rendered by Kustomize, valid for Kubernetes, and consistent in what the servers are promised."""

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import kubernetes_validate
import pytest

from tests.deploy.conftest import KUBERNETES, OVERLAYS, REPOSITORY
from tests.deploy.image import image_of

VERSION = "1.35"  # the oldest that has all that is used, image volumes among it
CLOSING_S = 5.0  # what the server takes at most beyond its two settings

CUSTOM = {"ScaledObject"}
"""Kinds of others, of which Kubernetes has no schema."""

KEDA = Path(__file__).parent / "keda"


def containers_of(deployment: dict) -> list[dict]:
    """All containers of its pods."""
    spec = deployment["spec"]["template"]["spec"]
    return [*spec.get("initContainers", ()), *spec["containers"]]


@pytest.fixture(params=OVERLAYS)
def manifests(request, render):
    """Each overlay."""
    return render(request.param)


def test_overlays_are_those_that_the_guide_names():
    """Nothing is left out of the tests below."""
    assert OVERLAYS == ["blue-green", "canary", "cpu", "gpu", "postgres"]


def test_each_object_is_valid(manifests):
    """Strictly: an unknown field is an error."""
    for each in manifests.objects:
        if each["kind"] not in CUSTOM:
            kubernetes_validate.validate(each, VERSION, strict=True)


def test_a_misspelt_field_is_found(render):
    """Positive control."""
    deployment = render("cpu").of("Deployment")["forebay"]
    deployment["spec"]["template"]["spec"]["terminationGracePeriodSecond"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, VERSION, strict=True)


@pytest.fixture(scope="module")
def keda() -> Callable[[dict], int]:
    """Says by 0 that KEDA's schema takes an object; skips without Node."""
    if shutil.which("npm") is None:
        pytest.skip("there is no Node here")
    modules = REPOSITORY / "build" / "keda-node"
    lock = (KEDA / "package-lock.json").read_text()
    installed = modules / ".installed"
    if not installed.exists() or installed.read_text() != lock:
        modules.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(KEDA / name, modules)
        command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        subprocess.run(command, cwd=modules, check=True, timeout=100)
        installed.write_text(lock)
    shutil.copy(KEDA / "validate.mjs", modules)

    def validate(each: dict) -> int:
        done = subprocess.run(
            ["node", "validate.mjs"], input=json.dumps(each).encode(), cwd=modules, capture_output=True, check=False
        )
        return done.returncode

    return validate


def test_the_autoscaler_is_one_that_keda_takes(render, keda):
    """By KEDA's own schema; a threshold that is no text is found (the control)."""
    scaler = render("gpu").of("ScaledObject")["forebay"]
    assert keda(scaler) == 0
    scaler["spec"]["triggers"][0]["metadata"]["threshold"] = 0.7
    assert keda(scaler) == 1


def test_everything_is_in_the_namespace(manifests):
    """Pods in it must meet the restricted standard."""
    (namespace,) = manifests.of("Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    others = [each for each in manifests.objects if each["kind"] != "Namespace"]
    assert {each["metadata"]["namespace"] for each in others} == {namespace["metadata"]["name"]}


def test_pods_are_locked_down(manifests):
    """No root, no capabilities, no writable root file system, no token, and no more memory than said."""
    for deployment in manifests.of("Deployment").values():
        spec = deployment["spec"]["template"]["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers_of(deployment):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])


def test_the_user_is_the_image_s(render):
    """So that the folders that belong to it in the image do in the pod."""
    context = render("cpu").of("Deployment")["forebay"]["spec"]["template"]["spec"]["securityContext"]
    image = image_of(REPOSITORY / "deploy" / "image" / "Dockerfile", "cpu")
    assert f"{context['runAsUser']}:{context['runAsGroup']}" == image.user


def test_there_is_time_to_end(manifests):
    """The grace period holds the hook, what the server's settings say, and a margin."""
    maps = manifests.config_maps
    for deployment in manifests.of("Deployment").values():
        spec = deployment["spec"]["template"]["spec"]
        needed = 0.0
        for container in containers_of(deployment):
            hook = container["lifecycle"]["preStop"]
            script = hook["exec"]["command"][-1] if "exec" in hook else f"sleep {hook['sleep']['seconds']}"
            waits = sum(map(float, re.findall(r"^sleep (\d+)$", script, re.MULTILINE)))
            if container["name"] == "server":
                (volume,) = [each for each in spec["volumes"] if each["name"] == "config"]
                server = tomllib.loads(maps[volume["configMap"]["name"]]["data"]["forebay.toml"])["server"]
                assert server["drain_delay_s"] >= 3  # two checks of the balancer, a second each, and some
                waits += server["drain_delay_s"] + server["drain_grace_s"] + CLOSING_S
            needed = max(needed, waits)
        assert spec["terminationGracePeriodSeconds"] >= needed + 5


def test_every_port_has_its_probe(manifests):
    """Readiness is asked by gRPC at each port that callers or balancers use; liveness asks for a port alone."""
    for deployment in manifests.of("Deployment").values():
        for container in containers_of(deployment):
            assert "grpc" in container["readinessProbe"]
            assert "tcpSocket" in container["livenessProbe"]
            ports = {port["containerPort"] for port in container["ports"]}
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                how = container[probe].get("grpc") or container[probe]["tcpSocket"]
                assert how["port"] in ports
            start = container["startupProbe"]
            assert start["failureThreshold"] * start["periodSeconds"] >= 30


def test_the_sidecar_does_not_wait_for_the_server(render):
    """A native sidecar's startup holds the server back, so it must not ask for the server's health."""
    for overlay in ("cpu", "gpu", "postgres"):
        (envoy,) = render(overlay).of("Deployment")["forebay"]["spec"]["template"]["spec"]["initContainers"]
        assert envoy["restartPolicy"] == "Always"
        assert "tcpSocket" in envoy["startupProbe"]


def test_selectors_find_pods_and_only_theirs(manifests):
    """Services, budgets and policies select the pods of exactly one Deployment: no version gets another's calls."""
    pods = {name: each["spec"]["template"]["metadata"]["labels"] for name, each in manifests.of("Deployment").items()}
    selectors = {
        **{f"Service {name}": each["spec"]["selector"] for name, each in manifests.of("Service").items()},
        **{
            f"{kind} {name}": each["spec"][key]["matchLabels"]
            for kind, key in (
                ("PodDisruptionBudget", "selector"),
                ("NetworkPolicy", "podSelector"),
                ("Deployment", "selector"),
            )
            for name, each in manifests.of(kind).items()
            if name != "forebay-postgres"
        },
    }
    for what, selector in selectors.items():
        found = [name for name, labels in pods.items() if selector.items() <= labels.items()]
        assert len(found) == 1, what
    budgeted = {
        tuple(sorted(each["spec"]["selector"]["matchLabels"].items()))
        for each in manifests.of("PodDisruptionBudget").values()
    }
    assert len(budgeted) == len(pods)


def test_services_lead_to_named_ports(manifests):
    """A Service's target is a port of the containers that it selects."""
    for service in manifests.of("Service").values():
        for deployment in manifests.of("Deployment").values():
            labels = deployment["spec"]["template"]["metadata"]["labels"]
            if service["spec"]["selector"].items() <= labels.items():
                names = {port["name"] for container in containers_of(deployment) for port in container["ports"]}
                assert {port["targetPort"] for port in service["spec"]["ports"]} <= names


def test_the_balancer_finds_both_versions(render):
    """The names that balancer.yaml asks for are headless Services, on the port that servers listen on."""
    text = (REPOSITORY / "deploy" / "envoy" / "balancer.yaml").read_text()
    wanted = set(re.findall(r"address: (forebay[a-z-]*), port_value: 8500", text))
    for overlay in ("canary", "blue-green"):
        services = render(overlay).of("Service")
        headless = {name for name, each in services.items() if each["spec"].get("clusterIP") == "None"}
        assert headless == wanted
        assert {services[name]["spec"]["ports"][0]["port"] for name in headless} == {8500}


def test_models_come_by_digest(manifests):
    """The same bytes on every replica."""
    for deployment in manifests.of("Deployment").values():
        for volume in deployment["spec"]["template"]["spec"]["volumes"]:
            if "image" in volume:
                assert re.fullmatch(r"\S+@sha256:[0-9a-f]{64}", volume["image"]["reference"])
            assert volume["name"] != "models" or "image" in volume


def test_autoscaled_deployments_say_no_number(manifests):
    """Else each `kubectl apply` would undo what the autoscaler has done."""
    for kind in ("HorizontalPodAutoscaler", "ScaledObject"):
        for scaler in manifests.of(kind).values():
            target = manifests.of("Deployment")[scaler["spec"]["scaleTargetRef"]["name"]]
            assert "replicas" not in target["spec"]


def test_the_canary_s_routes_differ_in_weights_only():
    """What is mended in one file is mended in both."""
    ours = (KUBERNETES / "overlays" / "canary" / "routes.yaml").read_text()
    common = (REPOSITORY / "deploy" / "envoy" / "routes.yaml").read_text()
    assert ours != common
    weight = re.compile(r"weight: \d+")
    assert weight.sub("", ours) == weight.sub("", common)
    assert sorted(set(weight.findall(ours))) == ["weight: 10", "weight: 90"]


def test_running_balancers_see_new_routes(render):
    """The ConfigMap of routes keeps its name, and lies in one folder with the rest: sub-paths are never updated."""
    deployment = render("canary").of("Deployment")["forebay-balancer"]
    (volume,) = deployment["spec"]["template"]["spec"]["volumes"]
    assert {"configMap": {"name": "envoy-routes"}} in volume["projected"]["sources"]
    (mount,) = deployment["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert "subPath" not in mount


def test_what_prometheus_looks_for_is_there(render):
    """kubernetes.yml selects pods by a label and keeps a port by its name."""
    text = (REPOSITORY / "deploy" / "prometheus" / "kubernetes.yml").read_text()
    (label,) = re.findall(r"label: (\S+)=forebay", text)
    (port,) = re.findall(r"port_name\], regex: (\w+)", text)
    deployment = render("cpu").of("Deployment")["forebay"]
    assert deployment["spec"]["template"]["metadata"]["labels"][label] == "forebay"
    assert port in {each["name"] for container in containers_of(deployment) for each in container["ports"]}
