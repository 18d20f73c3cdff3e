"""Every block of the documents is run or validated by a test: here, or where the comments say."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import typer
import yaml
from documents import DOCUMENTS, ROOT, blocks, commands, prose
from hub_configs import make_hub_cache

from hftitan_api import mesh
from hftitan_api.load import load
from hftitan_operator.cli.main import app
from hftitan_operator.core.rendering import admission
from hftitan_operator.core.rendering.render import render

EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
MANIFESTS = sorted((ROOT / "examples/cluster").glob("*.yaml"))
"""Kubernetes objects that the examples need."""
CHART = ROOT / "charts/hftitan/README.md"
MESH = ROOT / "docs/mesh.md"
PYTHON = [ROOT / "docs/training.md", ROOT / "docs/checkpoints.md"]
CLUSTER = ("submit", "list", "status", "logs", "describe", "events", "suspend", "resume", "delete")
PROGRAM = str(Path(sys.executable).with_name("hftitan"))
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1"}
"""These tests must not depend on the hub."""


def yaml_blocks():
    """Yield (id, document, text, value) of each YAML block."""
    for document in DOCUMENTS:
        for number, block in enumerate(block for block in blocks(document) if block.language == "yaml"):
            yield f"{document.relative_to(ROOT)}-{number}", document, block.text, yaml.safe_load(block.text)


JOBS = [(path.name, path.read_text()) for path in EXAMPLES] + [
    (name, text) for name, _, text, value in yaml_blocks() if value.get("kind") == "HFTitanJob"
]
DEFAULTS = [
    (name, text) for name, _, text, value in yaml_blocks() if value.keys() <= {"image", "tolerations", "cacheVolume"}
]
SCRAPE = [(name, document) for name, document, _, value in yaml_blocks() if "scrape_configs" in value]


@pytest.mark.parametrize(("name", "text"), JOBS, ids=[name for name, _ in JOBS])
def test_job_is_valid(name, text):
    loaded = load(text)
    assert loaded.problems == ()
    assert loaded.job is not None
    assert list(admission.problems(loaded.job)) == []


@pytest.mark.parametrize(("name", "text"), DEFAULTS, ids=[name for name, _ in DEFAULTS])
def test_job_defaults_are_valid(name, text, tmp_path):
    (tmp_path / "defaults.yaml").write_text(text)
    run("hftitan", "validate", EXAMPLES[0], "--job-defaults", tmp_path / "defaults.yaml")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_is_tested(document):
    languages = {block.language for block in blocks(document)}
    assert languages <= {"bash", "yaml", "python", "json", "text", "mermaid"}
    tested = {name for name, _ in [*JOBS, *DEFAULTS, *SCRAPE]}
    for name, place, text, _ in yaml_blocks():
        # Values of the chart: tests/chart/test_chart_files.py. Scrape jobs: there and in tests/monitoring.
        assert name in tested or place == CHART, f"{name}: no test; add one, or name it here\n{text}"
    assert {place for _, place in SCRAPE} <= {CHART, ROOT / "docs/monitoring.md"}
    # Python and JSON: tests/trainer/test_api.py (README) and test_documented_examples.py (docs). Text: below.
    assert "python" not in languages or document in [ROOT / "README.md", *PYTHON]
    assert "json" not in languages or document == ROOT / "docs/training.md"
    assert "text" not in languages or document == MESH


# --- objects that the examples need ---------------------------------------------------------------------------


def manifests():
    """Yield every Kubernetes object of examples/cluster."""
    for path in MANIFESTS:
        yield from yaml.safe_load_all(path.read_text())


@pytest.mark.parametrize("version", [f"1.{minor}" for minor in range(28, 38)])
def test_manifests_are_valid(version):
    for manifest in manifests():
        kubernetes_validate.validate(manifest, version, strict=True)


def test_claims_of_the_examples_exist_and_fit():
    claims = {each["metadata"]["name"]: each["spec"] for each in manifests() if each["kind"] == "PersistentVolumeClaim"}
    assert set(claims) == {"inputs", "results", "checkpoints"}
    used = set()
    for path in EXAMPLES:
        spec = load(path.read_text()).job.spec
        named = {volume.persistent_volume_claim.claim_name for volume in spec.pod.volumes}
        named |= {claim for claim in (spec.checkpoint.volume, spec.pod.cache_volume) if claim}
        assert all(spec.mesh.nodes == 1 or "ReadWriteMany" in claims[name]["accessModes"] for name in named), path
        used |= named
    assert used == set(claims)


def test_the_pod_for_files_mounts_the_claims_as_the_trainer_does():
    (pod,) = [each["spec"] for each in manifests() if each["kind"] == "Pod"]
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    claims = {volume["persistentVolumeClaim"]["claimName"]: mounts[volume["name"]] for volume in pod["volumes"]}
    assert claims == {"inputs": "/inputs", "results": "/results"}
    job = load((ROOT / "examples/claims-cpu.yaml").read_text()).job
    assert [mount.mount_path for mount in job.spec.pod.volume_mounts] == ["/inputs"]
    text = (ROOT / "docs/first-job.md").read_text()
    for path in (job.spec.model.name, job.spec.dataset.path, f"/results/{job.metadata.name}/export"):
        assert f"files:{path}" in text
    context = render(job, mesh.plan(job.spec), 1).pods[0]["spec"]["securityContext"]
    assert {key: context[key] for key in ("runAsUser", "runAsGroup", "fsGroup")} == {
        key: pod["securityContext"][key] for key in ("runAsUser", "runAsGroup", "fsGroup")
    }


# --- commands -------------------------------------------------------------------------------------------------


def run(*words):
    done = subprocess.run([PROGRAM, *map(str, words[1:])], cwd=ROOT, env=OFFLINE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def works(words):
    """Run a documented `hftitan` command; return whether it works."""
    if words[1] in CLUSTER:
        # Check only the arguments and the file of `submit`; tests/cluster/test_cli_cluster.py tests the rest.
        done = subprocess.run([PROGRAM, *words[1:], "--kubeconfig", "/none"], cwd=ROOT, capture_output=True, text=True)
        return done.stderr.splitlines()[-1] == "--kubeconfig /none: no such file"
    if words[1] == "run":  # a run takes minutes (see `make demo` and tests/local), so only validate its job
        words = ["hftitan", "validate", *words[2:]]
    run(*words)
    return True


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_work(document):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in commands(document):
        words = shlex.split(command.split(" | kubectl ")[0])
        where = f"{document.name}: {command}"
        if words[0] == "hftitan":
            assert works(words), where
        elif words[0] == "make":
            assert set(words[1:]) <= set(targets), where
        elif words[0].startswith("hack/"):  # `make test` runs it
            assert os.access(ROOT / words[0], os.X_OK), where
        elif words[0] == ".venv/bin/python" and words[1].startswith("bench/"):
            # A benchmark takes minutes, so only check that it starts.
            subprocess.run([sys.executable, *words[1:], "--help"], cwd=ROOT, capture_output=True, check=True)
        elif words[0] == ".venv/bin/python":
            compile((ROOT / words[1]).read_text(), words[1], "exec")
        elif words[0] == "hf":
            shown = subprocess.run(
                [PROGRAM.replace("hftitan", "hf"), words[1], "--help"], env=OFFLINE, capture_output=True
            )
            assert {word for word in words if word.startswith("--")} <= set(shown.stdout.decode().split()), where
        elif words[0] == "vllm":
            assert "vLLM has not been run" in " ".join(document.read_text().split()), where
        else:
            # Tested in tests/cluster/test_documents_kubectl.py, tests/chart/test_chart_files.py, and below (docker).
            assert words[0] in ("kubectl", "helm", "docker"), f"{where}: add it here"


def test_documented_images_are_built_pushed_and_installed():
    built = set(re.findall(r" -t (ghcr\S+)", (ROOT / "Makefile").read_text()))
    documents = [d for d in DOCUMENTS if any(command.startswith("docker ") for command in commands(d))]
    assert {document.name for document in documents} == {"README.md", "first-job.md", "install.md"}
    for document in documents:
        lines = commands(document)
        tags = dict(line.split()[2:4] for line in lines if line.startswith("docker tag "))
        pushed = [line.split()[2] for line in lines if line.startswith("docker push ")]
        assert tags.keys() == built, document
        assert list(tags.values()) == pushed, document
        (install,) = [line for line in lines if line.startswith("helm install ")]
        values = dict(word.split("=", 1) for word in install.split() if "=" in word)
        operator, trainer = pushed
        assert values == {"image.repository": operator.rpartition(":")[0], "jobDefaults.image": trainer}, document
        assert lines.index("make images") < lines.index(f"docker push {operator}") < lines.index(install), document


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The environment of a machine whose hub cache has the configs of the documents' models."""
    return {**OFFLINE, "HF_HUB_CACHE": str(make_hub_cache(tmp_path_factory.mktemp("hub")))}


def plan(hub, *words):
    done = subprocess.run([PROGRAM, "plan", *words], cwd=ROOT, env=hub, capture_output=True, text=True, check=True)
    return done.stdout


GPU_SIZES = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in MESH.read_text().splitlines()
    if re.match(r"\| .* \| `examples/", line)
]
"""Rows of the table of models and GPUs."""
USABLE_GIB = {"24 GB": 23, "40 GB": 39, "48 GB": 45, "80 GB": 79}
"""Memory of GPUs as nvidia-smi reports it, rounded down: RTX 4090, A100, L40S, H100."""
RUNTIME_GIB = 2


@pytest.mark.parametrize("row", GPU_SIZES, ids=[row[0] for row in GPU_SIZES])
def test_gpu_memory_is_what_the_plan_estimates(hub, row):
    _, arguments, gpus, estimate, smallest = row
    planned = json.loads(plan(hub, *shlex.split(arguments.strip("`")), "-o", "json"))
    needed = planned["memory"]["total"] / 2**30
    assert planned["worldSize"] == int(gpus)
    assert f"{needed:.1f} GiB" == estimate
    assert smallest == next(name for name, usable in USABLE_GIB.items() if needed + RUNTIME_GIB <= usable)


def test_estimate_of_the_measured_model(hub, tmp_path):
    """The model of bench/gpu-results."""
    model = {"name": "meta-llama/Llama-3.1-8B", "initialize": "random", "overrides": {"num_hidden_layers": 16}}
    training = {"steps": 12, "seqLen": 4096, "dtype": "bfloat16", "activationCheckpoint": "none"}
    spec = {"model": model, "dataset": {"path": "/x"}, "training": training}
    job = {"apiVersion": "hftitan.io/v1alpha1", "kind": "HFTitanJob", "metadata": {"name": "x"}, "spec": spec}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    needed = json.loads(plan(hub, tmp_path / "job.yaml", "-o", "json"))["memory"]["total"] / 2**30
    text = " ".join(MESH.read_text().split())
    assert f"The estimate is {needed:.1f} GiB. The measured peak was 36.2 GiB" in text
    assert "36.2 GiB peak" in (ROOT / "bench/gpu-results/README.md").read_text()


def test_documented_output_is_printed(hub):
    """A block of text is the end of the output of the command before it."""
    shown = blocks(MESH)
    places = [i for i, block in enumerate(shown) if block.language == "text"]
    assert places
    for i in places:
        (line,) = shown[i - 1].text.splitlines()
        assert plan(hub, *shlex.split(line)[2:]).endswith(shown[i].text)


def inline():
    """Yield (document, words) of each `hftitan ...` in sentences and tables."""
    for document in DOCUMENTS:
        for code in prose(document):
            if re.match(r"hftitan \w", code):
                yield document, code.split(" | ")[0].split()


def test_inline_commands_and_their_options_exist():
    root = typer.main.get_command(app)
    for document, words in inline():
        for name in words[1].split("|"):
            command = root.commands.get(name)
            assert command or name.startswith("-"), f"{document.name}: {' '.join(words)}"
            known = {option for param in (command or root).params for option in param.opts} | {"--help"}
            assert {word.split("=")[0] for word in words[2:] if word.startswith("-") and word != "-"} <= known, (
                f"{document.name}: {' '.join(words)}"
            )


def test_links_to_files_and_headings_exist():
    for document in DOCUMENTS:
        text = document.read_text()
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path, _, heading = target.partition("#")
            if "://" in path:
                continue
            found = (document.parent / path).resolve() if path else document
            assert found.exists(), f"{document.relative_to(ROOT)}: {target}"
            if heading:
                assert heading in headings(found), f"{document.relative_to(ROOT)}: {target}"


def headings(document):
    """Return the anchors of the headings, as GitHub forms them."""
    words = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in words}


@pytest.mark.parametrize(
    "message",
    [
        "is in use on this machine",
        "is in use by",
        "stop that run or use another --workdir",
        "exists only on a cluster; map it to a folder: --volume",
        "exists only on a cluster",
        "GPUs, but this machine has",
        "is damaged",
        "move it away",
    ],
)
def test_messages_of_local_runs_are_quoted_as_they_are(message):
    source = "".join(path.read_text() for path in (ROOT / "operator/hftitan_operator/local").glob("*.py"))
    joined = re.sub(r'"\n\s*f?"', "", source)
    assert message in (ROOT / "docs/local.md").read_text()
    assert message in joined
