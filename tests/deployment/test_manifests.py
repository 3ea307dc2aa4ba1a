"""The unit and the manifests in deploy/: they are valid, and say the same as the command and the settings that they use."""

from __future__ import annotations

import configparser
import inspect
import re
import shutil
import subprocess
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

from mielin_cells.cli import node as command
from mielin_cells.deployment.codes import USAGE
from mielin_cells.deployment.config import Config, read
from mielin_cells.deployment.ending import GRACE_S
from mielin_cells.metrics.families import FAMILIES

DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "systemd" / "mielin-node@.service"
NODES = DEPLOY / "kubernetes" / "nodes.yaml"
VERSIONS = ("1.30", "1.34")
"""Of Kubernetes, against whose schemas the manifests are checked."""

OPTIONS = {"--" + name.replace("_", "-") for name in inspect.signature(command.node).parameters} | {"--connect"}


def documents() -> dict[str, dict[str, Any]]:
    yaml = import_module("yaml")
    return {one["kind"]: one for one in yaml.safe_load_all(NODES.read_text())}


def container() -> dict[str, Any]:
    [found] = documents()["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    return dict(found)


def config_of(text: str, tmp_path: Path) -> Config:
    (tmp_path / "mielin.toml").write_text(text)
    return read(tmp_path / "mielin.toml")


def least_stop_s(config: Config) -> float:
    """A process that is told to stop ends itself by then, by force if it must."""
    return config.settings.drain_s + 2 * GRACE_S


@pytest.mark.parametrize("version", VERSIONS)
def test_the_manifests_fit_the_schema_of_kubernetes(version: str) -> None:
    kubernetes_validate = import_module("kubernetes_validate")
    kinds = documents()
    assert kinds.keys() == {"ConfigMap", "Service", "PodDisruptionBudget", "StatefulSet"}
    for document in kinds.values():
        kubernetes_validate.validate(document, version, strict=True)
    wrong = {**kinds["StatefulSet"], "spec": {**kinds["StatefulSet"]["spec"], "replica": 3}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


def test_a_pod_has_time_to_drain_and_the_options_are_those_of_the_command(tmp_path: Path) -> None:
    kinds = documents()
    config = config_of(kinds["ConfigMap"]["data"]["mielin.toml"], tmp_path)
    pod = kinds["StatefulSet"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= least_stop_s(config) + 2
    args = container()["args"]
    assert args[0] == "node"
    assert {word.split("=")[0] for word in args[1:]} <= OPTIONS
    written = float(container()["lifecycle"]["preStop"]["exec"]["command"][-1].split()[1])
    assert written == config.settings.drain_s


def test_the_files_of_a_pod_are_where_the_options_say_and_can_be_written() -> None:
    one, pod = container(), documents()["StatefulSet"]["spec"]["template"]["spec"]
    options = dict(word.removeprefix("--").split("=", 1) for word in one["args"][1:] if not word.startswith("--label"))
    mounts = {mount["mountPath"]: mount for mount in one["volumeMounts"]}
    for name in ("drain-file", "ready-file"):
        assert not mounts[str(Path(options[name]).parent)].get("readOnly")
    assert one["readinessProbe"]["exec"]["command"] == ["test", "-f", options["ready-file"]]
    assert options["drain-file"] in one["lifecycle"]["preStop"]["exec"]["command"][-1]
    assert mounts[str(Path(options["config"]).parent)]["name"] in {volume["name"] for volume in pod["volumes"]}
    names = {value["name"] for value in one["env"]}
    assert {word[2:-1] for word in options.values() if word.startswith("$(")} <= names


def test_all_select_the_same_pods() -> None:
    kinds = documents()
    labels = kinds["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    assert kinds["StatefulSet"]["spec"]["selector"]["matchLabels"] == labels
    assert kinds["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert kinds["Service"]["spec"]["selector"] == labels
    assert kinds["StatefulSet"]["spec"]["serviceName"] == kinds["Service"]["metadata"]["name"]


def unit() -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text())
    return parser


def test_a_unit_has_time_to_drain_and_is_not_started_again_where_that_mends_nothing() -> None:
    service, config = unit()["Service"], read(UNIT.with_name("mielin.toml"))
    assert float(service["TimeoutStopSec"]) >= least_stop_s(config) + 2
    assert int(service["RestartPreventExitStatus"]) == USAGE
    words = service["ExecStart"].split()
    assert words[1] == "node"
    assert {word for word in words if word.startswith("--")} <= OPTIONS
    folder = f"/run/{service['RuntimeDirectory']}/"
    for option in ("--drain-file", "--ready-file"):
        assert words[words.index(option) + 1].startswith(folder)
    assert "labels" in tomllib.loads(UNIT.with_name("mielin.toml").read_text())["node"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd on this machine")
def test_systemd_knows_every_line_of_the_unit(tmp_path: Path) -> None:
    file = tmp_path / "mielin-node@a.service"
    file.write_text(UNIT.read_text().replace("/srv/mielin/venv/bin/mielin", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert "Unknown" not in done.stderr
    assert str(file.name) not in done.stderr, done.stderr
    file.write_text(file.read_text().replace("RestartSec=1", "RestartSecs=1"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert "Unknown" in done.stderr


def test_the_image_has_the_package_and_the_app_where_the_pod_looks_for_it() -> None:
    lines = dict(
        line.split(" ", 1)
        for line in (DEPLOY / "kubernetes" / "Dockerfile").read_text().splitlines()
        if line[:1] not in ("#", "")
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [python] = re.findall(r"^python:(\d+\.\d+)-slim$", lines["FROM"])
    assert f"Programming Language :: Python :: {python}" in project["classifiers"]
    [package, extra] = re.findall(r"'([\w-]+)\[(\w+)\]'", lines["RUN"])[0]
    assert package == project["name"]
    assert extra in project["optional-dependencies"]
    source, folder = lines["COPY"].split()
    assert folder.rstrip("/") == container()["workingDir"]
    assert f"--app={source}" in container()["args"]


# ---- Prometheus --------------------------------------------------------------------------------------------------

PROMETHEUS = DEPLOY / "prometheus"
SELECTOR = re.compile(r"\b(mielin_[a-z_]+)(?:\{([^}]*)\})?")
SHOWN = {family.shown: family for family in FAMILIES.values()}


def expressions() -> dict[str, str]:
    yaml = import_module("yaml")
    [group] = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    assert all(rule["annotations"]["summary"] for rule in group["rules"])
    return {rule["alert"]: rule["expr"] for rule in group["rules"]}


def wrong_in(expression: str) -> list[str]:
    """Metrics and labels that no node has."""
    wrong = []
    for name, matchers in SELECTOR.findall(expression):
        labels = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)
        if name not in SHOWN:
            wrong.append(name)
        else:
            wrong += [f"{name}: {label}" for label in labels if label not in ("node", *SHOWN[name].labels)]
    return wrong


def test_alerts_are_about_metrics_and_labels_that_there_are() -> None:
    found = expressions()
    assert {alert: wrong for alert, one in found.items() if (wrong := wrong_in(one))} == {}
    assert sum("mielin_" in one for one in found.values()) >= 9
    mistaken = 'sum(mielin_turns{class="A"}) + mielin_agents{state="Error", owner!="b"}'
    assert wrong_in(mistaken) == ["mielin_turns", "mielin_agents: owner"]


def test_the_page_says_what_to_do_about_each_alert_and_its_queries_are_right() -> None:
    page = (ROOT / "docs" / "how-to-metrics.md").read_text()
    assert set(re.findall(r"^\| `(Mielin\w+)` \|", page, re.MULTILINE)) == expressions().keys()
    assert wrong_in(" ".join(re.findall(r"`[^`\n]+`", page))) == []


def test_prometheus_finds_the_pods_by_the_label_and_the_port_that_they_have() -> None:
    yaml = import_module("yaml")
    [job] = yaml.safe_load((PROMETHEUS / "kubernetes.yml").read_text())["scrape_configs"]
    keep = next(rule for rule in job["relabel_configs"] if rule.get("action") == "keep")
    [port] = container()["ports"]
    label = documents()["StatefulSet"]["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"]
    assert keep["source_labels"] == [
        "__meta_kubernetes_pod_label_app_kubernetes_io_name", "__meta_kubernetes_pod_container_port_name",
    ]  # fmt: skip
    assert keep["regex"] == f"{label};{port['name']}"
    [place] = [word for word in container()["args"] if word.startswith("--metrics=")]
    assert place.endswith(f":{port['containerPort']}")
    [static] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    assert job["job_name"] == static["job_name"] == "mielin"
    assert f'job="{job["job_name"]}"' in expressions()["MielinNodeDown"]
