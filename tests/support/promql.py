"""The PromQL of the dashboards, as Grafana sends it, and a Prometheus server to run it."""

from __future__ import annotations

import json
import math
import re
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from paths import ROOT

DASHBOARDS = ROOT / "charts/hftitan/dashboards"


@dataclass(frozen=True)
class Query:
    """`where`: dashboard and panel. `label`: for a variable, the label with its values; else empty."""

    where: str
    expr: str
    label: str = ""

    def filled(self, variables: Mapping[str, str]) -> Query:
        expr = re.sub(r"\$(\w+)", lambda found: variables[found[1]], self.expr)
        return Query(self.where, expr, self.label)


def queries(dashboard: Mapping[str, Any]) -> Iterator[Query]:
    """Yield the queries of panels, annotations and variables."""
    title = dashboard["title"]
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield Query(f"{title}: {panel['title']} {target['refId']}", target["expr"])
    for annotation in dashboard["annotations"].get("list", ()):
        yield Query(f"{title}: annotation {annotation['name']}", annotation["expr"])
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
            assert found, variable["query"]
            yield Query(f"{title}: variable {variable['name']}", found[1], found[2])


def all_queries() -> list[Query]:
    return [q for path in sorted(DASHBOARDS.glob("*.json")) for q in queries(json.loads(path.read_text()))]


def metrics_of(expr: str) -> set[str]:
    """Return the names of HFTitanJob and process metrics in an expression."""
    return set(re.findall(r"\b(?:hftitan|process)_\w+", re.sub(r'"[^"]*"', "", expr)))


class Prometheus:
    """A Prometheus server; `with` starts and kills it."""

    def __init__(self, program: Path, folder: Path, config: Mapping[str, Any], port: int) -> None:
        self._folder, self.url = folder, f"http://127.0.0.1:{port}"
        folder.mkdir()
        (folder / "prometheus.yml").write_text(yaml.safe_dump(dict(config)))
        self._command = [
            str(program), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ]  # fmt: skip

    def __enter__(self) -> Prometheus:
        # These modules are on the path only in tests/cluster.
        from kubectl import wait
        from processes import die_with_parent

        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, preexec_fn=die_with_parent)
        wait(self._ready, f"Prometheus (see {self._folder}/log)", 30.0)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def _ready(self) -> bool:
        assert self._process.poll() is None, self.log
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=10):
                return True
        except OSError:
            return False

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text()

    def ask(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer. Raises ValueError with Prometheus' message for an invalid query."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(f"{parameters}: {error.read().decode()}") from None

    def values(self, expr: str) -> list[float]:
        """Return the values of an instant vector."""
        return [float(series["value"][1]) for series in self.ask("query", query=expr)["result"]]

    def has_data(self, query: Query) -> bool:
        """Whether a query returns a number or, for a variable, a value."""
        if query.label:
            return bool(self.ask(f"label/{query.label}/values", **{"match[]": query.expr}))
        return any(not math.isnan(value) for value in self.values(query.expr))


def scrape_jobs(document: Path, targets: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Return the scrape jobs of the document, with files of targets instead of pod discovery, which Debian's Prometheus
    does not include."""
    config = yaml.safe_load(document.read_text().split("```yaml\n")[1].split("```")[0])
    jobs = []
    for job in config["scrape_configs"]:
        assert [found["role"] for found in job.pop("kubernetes_sd_configs")] == ["pod"]
        jobs.append({**job, "file_sd_configs": [{"files": [str(targets[job["job_name"]])]}]})
    return jobs


def discover(document: Path, pods_of: Callable[[str | None, str], Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return, by scrape job, the targets that the document's `kubernetes_sd_configs` find on a cluster.

    `pods_of(namespace, selector)` lists pods on the API server, as Prometheus does. None: in all namespaces.
    """
    config = yaml.safe_load(document.read_text().split("```yaml\n")[1].split("```")[0])
    found: dict[str, Any] = {}
    for job in config["scrape_configs"]:
        [discovery] = job["kubernetes_sd_configs"]
        assert discovery.keys() <= {"role", "namespaces", "selectors"}, (
            "unsupported discovery options: extend this function"
        )
        selector = ",".join(entry["label"] for entry in discovery.get("selectors", ()))
        names = discovery.get("namespaces", {}).get("names", [None])
        found[job["job_name"]] = pod_targets([pod for name in names for pod in pods_of(name, selector)])
    return found


def pod_targets(pods: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the targets that Prometheus discovers for pods (discovery/kubernetes/pod.go): one per container port, none
    for a pod without an address."""
    found = []
    for pod in pods:
        metadata, address = pod["metadata"], pod.get("status", {}).get("podIP")
        for container in pod["spec"]["containers"] if address else ():
            for port in container.get("ports", ()):
                labels = {
                    "__meta_kubernetes_namespace": metadata["namespace"],
                    "__meta_kubernetes_pod_name": metadata["name"],
                    "__meta_kubernetes_pod_phase": pod["status"]["phase"],
                    "__meta_kubernetes_pod_container_port_name": port["name"],
                }
                for key, value in metadata.get("labels", {}).items():
                    labels[f"__meta_kubernetes_pod_label_{re.sub(r'[^A-Za-z0-9_]', '_', key)}"] = value
                found.append({"targets": [f"{address}:{port['containerPort']}"], "labels": labels})
    return found
