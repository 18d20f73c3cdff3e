"""The PromQL of the dashboards, as Grafana sends it, and a Prometheus server to run it."""

from __future__ import annotations

import json
import math
import re
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
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


def discovers_pods(programs: Path) -> bool:
    """Whether this Prometheus has Kubernetes service discovery. Debian's has not."""
    config = "scrape_configs: [{job_name: x, kubernetes_sd_configs: [{role: pod}]}]"
    words = [programs / "promtool", "check", "config", "/dev/stdin"]
    done = subprocess.run(words, input=config, capture_output=True, text=True)
    assert done.returncode == 0 or "kubernetes_sd_configs not found" in done.stderr, done.stderr
    return done.returncode == 0


def scrape_jobs(document: Path, kubeconfig: Path | None = None) -> list[dict[str, Any]]:
    """Return the scrape jobs of a document, which find their pods with this kubeconfig; None: as a pod does."""
    blocks = [part.split("```")[0] for part in document.read_text().split("```yaml\n")[1:]]
    [config] = [yaml.safe_load(block) for block in blocks if block.startswith("scrape_configs:")]
    found: list[dict[str, Any]] = config["scrape_configs"]
    if kubeconfig is not None:
        for discovery in (discovery for job in found for discovery in job["kubernetes_sd_configs"]):
            discovery["kubeconfig_file"] = str(kubeconfig)
    return found
