"""The manifests' probes, hooks and times, rehearsed with the real server and the real Envoy: nobody's call fails."""

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.deploy.conftest import REPOSITORY
from tests.deploy.image import image_of
from tests.deploy.kubelet import Pod
from tests.deploy.service import Service
from tests.envoy.test_balancer import Load
from tests.serving import NATIVE, Caller, row
from tests.waiting import eventually

pytestmark = [pytest.mark.native, pytest.mark.skipif(not NATIVE, reason="the image runs the native front end")]

DOCKERFILE = REPOSITORY / "deploy" / "image" / "Dockerfile"
STREAMS_AND_CALLS = ("unary", "items", "jobs")


@pytest.fixture
def models(onnx_models) -> Path:
    """What is in the image of the models: `digits.onnx`, which gives back what it gets."""
    return onnx_models.make_identity_model(shape=("N", 4), name="digits").parent


@pytest.fixture
def pods(models: Path) -> Iterator[Callable[..., Pod]]:
    """Starts pods of a rendered Deployment; none is left at the end."""
    started: list[Pod] = []

    def start(manifests, name: str = "forebay", edit: Callable[[dict], None] | None = None, **arguments) -> Pod:
        deployment = copy.deepcopy(manifests.of("Deployment")[name])
        if edit is not None:
            edit(deployment["spec"]["template"]["spec"])
        pod = Pod(
            deployment,
            manifests.config_maps,
            images={"server": image_of(DOCKERFILE, "cpu")},
            models=models,
            **arguments,
        )
        started.append(pod)
        return pod.start()

    yield start
    for pod in started:
        pod.close()


@pytest.fixture
def service() -> Iterator[Callable[[str], Service]]:
    """Services, closed at the end."""
    made: list[Service] = []

    def make(port: str) -> Service:
        made.append(Service(port))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def load() -> Iterator[Callable[..., Load]]:
    """Callers on two connections through a Service, with plain stubs that send nothing again."""
    loads: list[tuple[Load, list[Caller]]] = []

    def begin(service: Service) -> Load:
        callers = [Caller(service.addresses["public"]) for _ in range(2)]
        loads.append((Load(callers, "digits"), callers))
        return loads[-1][0]

    yield begin
    for each, callers in loads:
        each.end()
        for caller in callers:
            caller.channel.close()


def flows(load: Load, times: int = 30) -> None:
    """Waits until so many more of each kind have been answered."""
    before = dict(load.answered)
    eventually(lambda: all(load.answered[kind] > before.get(kind, 0) + times for kind in STREAMS_AND_CALLS), "load", 60)


def ended_well(pod: Pod) -> None:
    """All containers ended by themselves, in time, had been healthy, and wrote where they may."""
    assert {each.name: (each.exit_code, each.killed, each.unhealthy) for each in pod.containers} == {
        each.name: (0, False, "") for each in pod.containers
    }
    assert pod.written() == []


def test_replacing_a_pod_fails_no_call(render, pods, service, load, database):
    """A rolling update: the new pod becomes ready, the old one is ended; callers come by connections that stay."""
    manifests = render("postgres")
    secrets = {"forebay-jobs/store": database}
    front = service("8080")
    front.pods = [pods(manifests, secrets=secrets) for _ in range(2)]
    for pod in front.pods:
        pod.wait_ready()
    eventually(lambda: len(front.endpoints()) == 2, "both are known")
    callers = load(front)
    flows(callers)
    front.pods.append(pods(manifests, secrets=secrets).wait_ready())
    flows(callers)
    old = front.pods[0]
    old.end()
    flows(callers)
    assert callers.end() == []
    ended_well(old)


def test_calls_are_lost_without_the_hooks(render, pods, service, load, database):
    """The control: without preStop, and without a moment in which the server still takes work, calls fail."""

    def abrupt(spec: dict) -> None:
        for container in [*spec["initContainers"], *spec["containers"]]:
            del container["lifecycle"]
        server = spec["containers"][0]
        server["env"].append({"name": "FOREBAY_SERVER__DRAIN_DELAY_S", "value": "0"})

    manifests = render("postgres")
    front = service("8080")
    front.pods = [pods(manifests, edit=abrupt, secrets={"forebay-jobs/store": database}) for _ in range(2)]
    for pod in front.pods:
        pod.wait_ready()
    eventually(lambda: len(front.endpoints()) == 2, "both are known")
    callers = load(front)
    flows(callers)
    front.pods[0].end()
    assert callers.end() != []


def test_a_pod_is_ready_when_its_models_are(render, pods, models):
    """Envoy starts first and waits for no server; readiness comes through it, per port, when the model is loaded."""
    hidden = models / "digits.onnx"
    hidden.rename(models / "later")
    pod = pods(render("cpu"))
    assert pod.container("envoy").started
    assert not pod.ready
    eventually(lambda: pod.container("server").exit_code is not None, "a server without its model ends", 60)
    assert pod.container("server").exit_code == 1
    assert "digits.onnx: no such file" in pod.log("server")
    (models / "later").rename(hidden)
    again = pods(render("cpu")).wait_ready()
    assert again.run(again.container("server"), image_of(DOCKERFILE, "cpu").healthcheck, 30) == 0
    assert '"wire": "native"' in again.log("server")


def test_the_balancer_goes_without_a_failed_call(render, pods, service, load):
    """Two servers of the canary overlay behind two balancers, one of which is ended."""
    manifests = render("canary")
    stores = {"name": "FOREBAY_JOBS__STORE", "value": "memory:"}

    def with_jobs(spec: dict) -> None:
        spec["containers"][0]["env"].append(stores)

    def sooner(spec: dict) -> None:
        command = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert "sleep 30" in command[-1]
        command[-1] = command[-1].replace("sleep 30", "sleep 7")

    servers = {name: pods(manifests, name, edit=with_jobs).wait_ready() for name in ("forebay", "forebay-canary")}
    addresses = {name: pod.ports["8500"] for name, pod in servers.items()}
    front = service("8080")
    front.pods = [pods(manifests, "forebay-balancer", edit=sooner, addresses=addresses) for _ in range(2)]
    for pod in front.pods:
        pod.wait_ready()
    eventually(lambda: len(front.endpoints()) == 2, "both are known")
    callers = load(front)
    flows(callers)
    front.pods[0].end()
    flows(callers)
    assert callers.end() == []
    ended_well(front.pods[0])


def test_a_rollout_by_weights_is_seen_by_a_running_balancer(render, pods):
    """The canary gets its part; when the file of routes changes in place, as a ConfigMap does, it gets everything."""
    manifests = render("canary")

    def scaled(factor: float) -> Callable[[dict], None]:
        def edit(spec: dict) -> None:
            spec["containers"][0]["env"] += [
                {"name": "FOREBAY_MODELS__0__PATH", "value": f"synthetic:scale={factor}"},
                {"name": "FOREBAY_MODELS__0__NAME", "value": "digits"},
            ]

        return edit

    stable = pods(manifests, "forebay", edit=scaled(1.0)).wait_ready()
    canary = pods(manifests, "forebay-canary", edit=scaled(2.0)).wait_ready()
    addresses = {"forebay": stable.ports["8500"], "forebay-canary": canary.ports["8500"]}
    balancer = pods(manifests, "forebay-balancer", addresses=addresses).wait_ready()
    caller = Caller(f"127.0.0.1:{balancer.ports['8080']}")

    def answers() -> set[bytes]:
        return {caller.predict("digits", row(1)).outputs[0].data for _ in range(100)}

    try:
        assert answers() == {row(1).tobytes(), row(2).tobytes()}

        def all_to_the_next(text: str) -> str:
            text = re.sub(r"\{name: forebay, weight: \d+\}", "{name: forebay, weight: 0}", text)
            return re.sub(r"\{name: forebay-canary, weight: \d+\}", "{name: forebay-canary, weight: 100}", text)

        balancer.rewrite("envoy", "routes.yaml", all_to_the_next)
        eventually(lambda: answers() == {row(2).tobytes()}, "all calls go to the next version", 30)
    finally:
        caller.channel.close()
