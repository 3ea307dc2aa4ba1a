"""The pages about systemd and Kubernetes: each of their commands is given, and what they install or start is a node that serves.

There is neither a systemd nor a cluster here.  The shell, `install`, `cp` and the nodes are the real ones; `useradd`, `systemctl`, the
making of an environment and `kubectl` are stand-ins, which do what the manifests say and refuse what they do not know.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from support.paths import DOCS, ROOT
from support.processes import MIELIN

from mielin_cells.substrate.jetstream.server import Server

APP = """
import mielin_cells as cells


class Locker(cells.Agent):
    cents: int = 0

    @cells.handler
    async def put(self, cents: int) -> int:
        self.cents += cents
        return self.cents
"""
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
URL = re.compile(r"nats://user:password@[^'\s]+")
START_S = 60.0


def scripts(page: str, url: str) -> list[str]:
    """The blocks of a page, with the address of a server that is there."""
    return [URL.sub(url, block) for block in BLOCK.findall((DOCS / f"{page}.md").read_text())]


def until(is_so: Any, what: str, seconds: float = START_S) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"not in time: {what}"
        time.sleep(0.05)


# ---- systemd -----------------------------------------------------------------------------------------------------

STAND_INS = {
    "useradd": '[ "$*" = "--system --home $ROOT/srv/mielin --create-home mielin" ] && mkdir -p "$ROOT/srv/mielin"',
    "systemctl": """
echo "$*" >> "$ROOT/systemctl"
case "$1" in
  daemon-reload) ;;
  enable) test -f "$ROOT/etc/systemd/system/mielin-node@.service" ;;
  *) false ;;
esac""",
    "python3": '[ "$1 $2" = "-m venv" ] && mkdir -p "$3/bin" && ln -s "$MIELIN" "$3/bin/mielin" && cp "$ROOT/bin/pip" "$3/bin/pip"',
    "pip": '[ "$1 $2" = "install mielin-cells[speed]" ]',
}  # fmt: skip


@pytest.mark.timeout(120)
def test_the_commands_about_systemd_install_a_node_that_serves(server: Server, tmp_path: Path) -> None:
    (script,) = scripts("how-to-systemd", server.url)
    (tmp_path / "bin").mkdir()
    (tmp_path / "etc" / "systemd" / "system").mkdir(parents=True)
    for name, body in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    moved = re.sub(r"(?<![\w.])/(srv|etc)/", rf"{tmp_path}/\1/", script)
    environment = {
        **os.environ, "ROOT": str(tmp_path), "MIELIN": MIELIN, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    subprocess.run(["bash", "-euc", moved], cwd=tmp_path, env=environment, check=True, timeout=60)
    assert (tmp_path / "systemctl").read_text().splitlines() == ["daemon-reload", "enable --now mielin-node@node-1"]
    secret = tmp_path / "etc" / "mielin" / "server.env"
    assert secret.stat().st_mode & 0o777 == 0o600
    unit = (tmp_path / "etc" / "systemd" / "system" / "mielin-node@.service").read_text().replace("%i", "node-1")
    options = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line and not line.startswith("#"))
    (tmp_path / "run" / options["RuntimeDirectory"]).mkdir(parents=True)
    command = shlex.split(re.sub(r"(?<![\w.])/(srv|etc|run)/", rf"{tmp_path}/\1/", options["ExecStart"]))
    given = dict(line.split("=", 1) for line in secret.read_text().splitlines())
    home = tmp_path / options["WorkingDirectory"].removeprefix("/")
    given |= {"MIELIN_DEPLOYMENT": "systemd", "PATH": os.environ["PATH"]}
    with subprocess.Popen(command, cwd=home, env=given) as node:
        try:
            until((tmp_path / "run" / "mielin-node-1" / "ready").exists, "the node serves")
        finally:
            node.terminate()
    assert node.returncode == 0


# ---- Kubernetes --------------------------------------------------------------------------------------------------


@dataclass
class Pods:
    """What the page needs of a cluster: pods of the manifest as processes, each on a machine of its own."""

    folder: Path
    secrets: dict[str, dict[str, str]] = field(default_factory=dict)
    kinds: dict[str, dict[str, Any]] = field(default_factory=dict)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def kubectl(self, words: list[str]) -> None:
        match words:
            case ["create", "secret", "generic", name, literal] if literal.startswith("--from-literal="):
                key, _, value = literal.removeprefix("--from-literal=").partition("=")
                self.secrets.setdefault(name, {})[key] = value
            case ["apply", "-f", path]:
                documents = import_module("yaml").safe_load_all((ROOT / path).read_text())
                self.kinds = {one["kind"]: one for one in documents}
                self.scale(self.kinds["StatefulSet"]["spec"]["replicas"])
            case ["rollout", "status", thing]:
                assert thing == f"statefulset/{self.name}"
                for pod in self.running:
                    until(self.ready(pod).exists, f"{pod} is ready")
            case ["exec", pod, "--", *command]:
                done = subprocess.run(
                    command, env=self.environment(pod), cwd=self.folder, capture_output=True, text=True, timeout=100, check=False
                )  # fmt: skip
                assert done.returncode == 0, (command, done.stdout, done.stderr)
                self.said.append(done.stdout)
            case ["delete", "pod", pod]:
                self.stop(pod)
                self.start(pod)
            case ["drain", machine, "--ignore-daemonsets"]:
                pod = f"{self.name}-{machine.removeprefix('machine-')}"
                self.stop(pod)
                self.start(pod)
            case ["scale", "statefulset", name, replicas]:
                assert name == self.name
                self.scale(int(replicas.removeprefix("--replicas=")))
            case _:
                raise AssertionError(f"this stand-in does not know: kubectl {shlex.join(words)}")

    @property
    def name(self) -> str:
        return str(self.kinds["StatefulSet"]["metadata"]["name"])

    @property
    def container(self) -> dict[str, Any]:
        [found] = self.kinds["StatefulSet"]["spec"]["template"]["spec"]["containers"]
        return dict(found)

    def path(self, pod: str, text: str) -> str:
        """Paths of a pod are in a folder of its own."""
        return re.sub(r"(?<![\w.])/(run|etc)/mielin", rf"{self.folder / pod}/\1", text)

    def ready(self, pod: str) -> Path:
        return Path(self.path(pod, self.container["readinessProbe"]["exec"]["command"][-1]))

    def environment(self, pod: str) -> dict[str, str]:
        found = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "MIELIN_DEPLOYMENT": "kubernetes",
        }
        for one in self.container["env"]:
            source = one["valueFrom"]
            if "secretKeyRef" in source:
                found[one["name"]] = self.secrets[source["secretKeyRef"]["name"]][source["secretKeyRef"]["key"]]
            else:
                path = source["fieldRef"]["fieldPath"]
                found[one["name"]] = {"metadata.name": pod, "spec.nodeName": f"machine-{pod[-1]}"}[path]
        return found

    def scale(self, replicas: int) -> None:
        wanted = [f"{self.name}-{n}" for n in range(replicas)]
        for pod in [*self.running]:
            if pod not in wanted:
                self.stop(pod)
        for pod in wanted:
            if pod not in self.running:
                self.start(pod)

    def start(self, pod: str) -> None:
        for place in ("run", "etc"):
            (self.folder / pod / place).mkdir(parents=True, exist_ok=True)
        for name, text in self.kinds["ConfigMap"]["data"].items():
            (self.folder / pod / "etc" / name).write_text(text)
        (self.folder / pod / "run" / "drain").unlink(missing_ok=True)  # the volume of a new pod is empty
        environment = self.environment(pod)
        args = [re.sub(r"\$\((\w+)\)", lambda found: environment[found[1]], arg) for arg in self.container["args"]]
        args = [self.path(pod, arg).replace("0.0.0.0:9464", "127.0.0.1:0") for arg in args]
        self.running[pod] = subprocess.Popen([*self.container["command"], *args], cwd=self.folder, env=environment)

    def stop(self, pod: str) -> None:
        """As a kubelet does: the hook, SIGTERM, and it must end by itself."""
        process = self.running.pop(pod)
        hook = [self.path(pod, word) for word in self.container["lifecycle"]["preStop"]["exec"]["command"]]
        subprocess.run(hook, check=True, timeout=10)
        process.terminate()
        assert process.wait(100) == 0


@contextmanager
def opened(folder: Path) -> Iterator[Pods]:
    pods = Pods(folder)
    try:
        yield pods
    finally:
        for process in pods.running.values():
            process.terminate()
        for process in pods.running.values():
            process.wait(60)


@pytest.mark.timeout(280)
def test_the_commands_about_kubernetes_start_drain_and_stop_nodes(server: Server, tmp_path: Path) -> None:
    install, drains = scripts("how-to-kubernetes", server.url)
    (tmp_path / "app.py").write_text(APP)

    def agents(node: str) -> int:
        pods.kubectl(["exec", "mielin-nodes-0", "--", "mielin", "agents", "--node", node, "--count"])
        return int(pods.said[-1])

    with opened(tmp_path) as pods:
        for line in install.splitlines():
            words = shlex.split(line, comments=True)
            assert words[0] == "kubectl"
            pods.kubectl(words[1:])
        assert len(re.findall(r"^mielin-nodes-[012] +alive", pods.said[-1], re.MULTILINE)) == 3
        for n in range(3):
            pods.kubectl(
                [
                    "exec",
                    "mielin-nodes-0",
                    "--",
                    "mielin",
                    "spawn",
                    "Locker",
                    f"locker-{n}",
                    "--on",
                    f"mielin-nodes-{n}",
                ]
            )
        for line in drains.splitlines():
            words = shlex.split(line, comments=True)
            pods.kubectl(words[1:])
            pods.kubectl(["rollout", "status", "statefulset/mielin-nodes"])
            if "drain" in words[4:]:
                assert agents("mielin-nodes-1") == 0, "it has given its agents away, and runs on"
                assert pods.running["mielin-nodes-1"].poll() is None
        assert pods.running.keys() == {"mielin-nodes-0", "mielin-nodes-1"}
        for n in range(3):
            pods.kubectl(["exec", "mielin-nodes-0", "--", "mielin", "ask", f"locker-{n}", "put", "5"])
            assert pods.said[-1] == "5\n"
