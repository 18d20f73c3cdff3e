"""The commands, run by typer's test runner: output, errors and exit codes."""

import json
import math
import subprocess
import sys
from pathlib import Path

import job_documents
import pytest
import yaml
from documents import ROOT
from typer.testing import CliRunner

from hftitan_operator.cli import plan as plan_text
from hftitan_operator.cli.main import app

JOB = job_documents.document(
    "tiny",
    {**job_documents.ON_CPU, "mesh": {"nodes": 2, "gpusPerNode": 4, "tp": 2}},
    training={"seqLen": 64, "localBatchSize": 2, "globalBatchSize": 16},
    checkpoint={"volume": "claim"},
)
LARGE = {
    "model_type": "llama",
    "hidden_size": 16_384,
    "intermediate_size": 53_248,
    "num_hidden_layers": 5000,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
}
CONFIG = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


@pytest.fixture
def hftitan(tmp_path, monkeypatch):
    """Function: run a command in an empty folder, with an empty hub cache and offline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return lambda *arguments, **more: CliRunner().invoke(app, [*arguments], **more)


@pytest.fixture
def job(tmp_path):
    """Function: write job.yaml with the given sections of the spec."""

    def write(name="job.yaml", **spec):
        document = {**JOB, "spec": JOB["spec"] | spec}
        (tmp_path / name).write_text(yaml.safe_dump(document, sort_keys=False))
        return document

    return write


@pytest.fixture
def model(tmp_path):
    """A model folder with the config.json of SmolLM2-135M."""
    folder = tmp_path / "smol"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return str(folder)


def cache_config(tmp_path):
    """Add config.json of org/model to the hub's cache, in the layout of huggingface_hub."""
    folder = tmp_path / "hf" / "hub" / "models--org--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("c0ffee")
    (folder / "snapshots" / "c0ffee").mkdir(parents=True)
    (folder / "snapshots" / "c0ffee" / "config.json").write_text(json.dumps(CONFIG))


NOT_CHECKED = (
    "job.yaml: note: config.json of org/model not available (not in the hub's cache, and HF_HUB_OFFLINE is set): "
    "heads, layers and experts of the model are not checked\n"
)


# --- validate -----------------------------------------------------------------------------------------------


def test_validate_a_valid_job(hftitan, job):
    job()
    result = hftitan("validate", "job.yaml")
    assert result.exit_code == 0
    assert result.stdout == "job.yaml: valid: tiny, mesh 2x4: dp4 tp2, world size 8\n"
    assert result.stderr == NOT_CHECKED


def test_validate_lists_all_errors(hftitan, job):
    job(mesh={"nodes": 2, "gpusPerNode": 4, "tp": 3}, dataset={})
    result = hftitan("validate", "job.yaml")
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert "job.yaml: spec.dataset: has neither name nor path; set name (a hub id) or path (a file or folder)" in lines
    assert any(line.startswith("job.yaml: spec.mesh.tp: 3 does not divide the 8 ranks") for line in lines)


def test_validate_checks_the_mesh_against_the_model(hftitan, job, model):
    job(model={"name": model}, mesh={"gpusPerNode": 2, "tp": 2}, training={"steps": 1, "seqLen": 64})
    result = hftitan("validate", "job.yaml")
    assert result.exit_code == 2
    assert result.stderr == (f"job.yaml: spec.mesh.tp: 2 does not divide the 9 attention heads of {model}; use 1\n")


def test_validate_finds_the_config_in_the_hubs_cache(hftitan, job, tmp_path):
    cache_config(tmp_path)
    job(mesh={"gpusPerNode": 2, "tp": 2}, training={"steps": 1, "seqLen": 64})
    result = hftitan("validate", "job.yaml")
    assert result.exit_code == 2
    assert "spec.mesh.tp: 2 does not divide the 9 attention heads of org/model; use 1" in result.stderr


def test_validate_applies_the_rules_of_the_operator(hftitan, job):
    job(pod={"env": [{"name": "PET_NNODES", "value": "3"}]})
    result = hftitan("validate", "job.yaml")
    assert result.exit_code == 2
    assert "job.yaml: spec.pod.env[0].name: PET_NNODES is set by the operator; remove it" in result.stderr


def test_validate_several_files_and_standard_input(hftitan, job):
    document = job("a.yaml")
    job("b.yaml", training={"steps": 0})
    result = hftitan("validate", "a.yaml", "b.yaml", "-", "c.yaml", input=json.dumps(document))
    assert result.exit_code == 2
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["a.yaml", "-"]
    assert "b.yaml: spec.training.steps: " in result.stderr
    assert "c.yaml: No such file or directory" in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "job.yaml: is not UTF-8 text (byte 0)"),
        (b"a: [1", "job.yaml: line 1:"),
        (b"- 1", "job.yaml: line 1: this is not a job"),
    ],
)
def test_validate_a_file_that_is_not_a_job(hftitan, tmp_path, content, message):
    (tmp_path / "job.yaml").write_bytes(content)
    result = hftitan("validate", "job.yaml")
    assert result.exit_code == 2
    assert result.stderr.startswith(message)


def missing(field, path):
    return (
        f"job.yaml: warning: {field}: {path} does not exist on this machine; pods may still have it, through their "
        "image or a volume in spec.pod.volumeMounts"
    )


def warnings(result):
    assert result.exit_code == 0, result.stderr
    return [line for line in result.stderr.splitlines() if ": warning: " in line]


def test_validate_warns_about_paths_that_are_missing_here(hftitan, job, tmp_path):
    job(
        model={"name": "/nonsuch/model"},
        dataset={"path": "/nonsuch/train"},
        validation={"dataset": {"path": str(tmp_path / "job.yaml" / "x")}, "interval": 5},
    )
    assert warnings(hftitan("validate", "job.yaml")) == [
        missing("spec.model.name", "/nonsuch/model"),
        missing("spec.dataset.path", "/nonsuch/train"),
        missing("spec.validation.dataset.path", f"{tmp_path}/job.yaml/x"),
    ]


def test_validate_does_not_warn_about_existing_paths_and_hub_ids(hftitan, job, model, tmp_path):
    job(model={"name": model}, mesh={"gpusPerNode": 4}, dataset={"path": str(tmp_path / "job.yaml")})
    assert warnings(hftitan("validate", "job.yaml")) == []
    job()
    assert warnings(hftitan("validate", "job.yaml")) == []


@pytest.mark.parametrize(
    ("path", "pod", "warned"),
    [
        ("/data/a.txt", {}, False),
        ("/data", {}, False),
        ("/data/", {}, False),
        ("/data2/a.txt", {}, True),
        ("/dat", {}, True),
        ("/var/hftitan/output/corpus", {}, False),
        ("/var/hftitan/cache/corpus", {}, True),
        ("/var/hftitan/cache/corpus", {"cacheVolume": "models"}, False),
    ],
)
def test_validate_does_not_warn_about_paths_below_mounted_volumes(hftitan, job, path, pod, warned):
    volume = {"name": "data", "persistentVolumeClaim": {"claimName": "c"}}
    mounted = {"volumes": [volume], "volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    job(dataset={"path": path}, pod=mounted | pod)
    assert warnings(hftitan("validate", "job.yaml")) == ([missing("spec.dataset.path", path)] if warned else [])


# --- plan ---------------------------------------------------------------------------------------------------


def test_plan_tables(hftitan, job):
    job()
    result = hftitan("plan", "job.yaml")
    assert result.exit_code == 0
    head, axes, nodes = result.stdout.split("\n\n")[:3]
    assert "mesh     2x4: dp4 tp2  (2 nodes x 4 GPUs, world size 8)" in head
    assert "16 sequences x 64 tokens = 1,024 tokens per step; 2 per rank, 2 passes accumulated" in head
    assert axes.splitlines() == [
        "AXIS      DEGREE  GROUPS  STRIDE  RANKS OF EACH GROUP",
        "dp_shard  4       2       2       0,2,4,6  1,3,5,7",
        "tp        2       4       1       0-1  2-3  4-5  6-7",
    ]
    assert nodes.splitlines()[:3] == [
        "NODE  RANKS  DP_SHARD  TP",
        "0     0-3    0-1       0-1",
        "1     4-7    2-3       0-1",
    ]


@pytest.mark.parametrize(
    ("mesh", "batch"),
    [
        ({"nodes": 1000, "gpusPerNode": 8, "tp": 8}, 1),
        ({"nodes": 4096, "gpusPerNode": 8, "dpReplicate": 2, "cp": 2, "tp": 4, "pp": 8}, 8),
        ({"nodes": 5000, "gpusPerNode": 64, "dpReplicate": 2, "cp": 2, "tp": 4, "pp": 8}, 8),
        ({"nodes": 5000, "gpusPerNode": 64, "pp": 2000}, 2000),
        ({"nodes": 5000, "gpusPerNode": 64, "dpReplicate": 64_000, "dpShard": 5}, 1),
    ],
)
def test_plan_of_a_large_mesh_fits_a_screen(hftitan, job, model, mesh, batch):
    job(mesh=mesh, training={"steps": 10**6, "seqLen": 65_536, "localBatchSize": batch})
    cache = Path("hf/hub/models--org--model/snapshots/main")
    cache.mkdir(parents=True)
    (cache / "config.json").write_text(json.dumps(LARGE))
    result = hftitan("plan", "job.yaml", "--set", "spec.checkpoint.asyncMode=async")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) < 40
    assert max(map(len, lines)) <= 100
    assert any(line.startswith(f"... {mesh['nodes'] - 8} more") for line in lines)
    assert "verdict  " in result.stdout


def test_plan_shows_groups_with_a_stride_by_their_ends(hftitan, job):
    job(mesh={"nodes": 64, "gpusPerNode": 8, "tp": 8}, training={"steps": 1, "seqLen": 2048})
    axes = hftitan("plan", "job.yaml").stdout.split("\n\n")[1]
    assert axes.splitlines() == [
        "AXIS      DEGREE  GROUPS  STRIDE  RANKS OF EACH GROUP",
        "dp_shard  64      8       8       0,8,16,...,504  1,9,17,...,505  2,10,18,...,506  ...",
        "tp        8       64      1       0-7  8-15  16-23  24-31  32-39  40-47  48-55  56-63  ...",
    ]


def verdict(hftitan, *arguments):
    """Return the verdict as one line, and the memory in JSON."""
    text = hftitan("plan", "job.yaml", *arguments).stdout.partition("\nverdict  ")[2]
    memory = json.loads(hftitan("plan", "job.yaml", "-o", "json", *arguments).stdout)["memory"]
    return " ".join(text.split()), memory


def test_plan_verdict_on_memory(hftitan, job, model):
    job(model={"name": model}, mesh={"gpusPerNode": 2}, training={"steps": 1, "seqLen": 8192, "localBatchSize": 8})
    text, memory = verdict(hftitan)
    needed = f"{math.ceil(memory['total'] / 2**30 * 10) / 10:g} GiB needed per device"
    assert text == f"fits: {needed}, 80 GiB available (assumed; set it with --gpu-memory)"
    assert (memory["available"], memory["fits"]) == (80 * 2**30, True)

    text, memory = verdict(hftitan, "--gpu-memory", "24.5")
    assert text == (
        f"does not fit: {needed}, 24.5 GiB available; raise dpShard, tp or pp, "
        "or set training.activationCheckpoint to full"
    )
    assert (memory["available"], memory["fits"]) == (int(24.5 * 2**30), False)

    limit = str(math.ceil(memory["total"] / 2**30))
    text, memory = verdict(hftitan, "--gpu-memory", limit)
    assert text == f"fits: {needed}, {limit} GiB available, but the runtime needs 1 to 2 GiB more"
    assert memory["fits"] is True

    job(
        model={"name": model},
        mesh={"gpusPerNode": 2},
        training={"steps": 1, "seqLen": 8192, "localBatchSize": 8, "activationCheckpoint": "full"},
    )
    text, memory = verdict(hftitan, "--gpu-memory", "2")
    assert text.endswith(" GiB needed per device, 2 GiB available; raise dpShard, tp or pp")


def test_plan_of_a_cpu_mesh_has_no_verdict(hftitan, job, model):
    job(model={"name": model}, mesh={"device": "cpu"}, training={"steps": 1, "seqLen": 64})
    text, memory = verdict(hftitan, "--gpu-memory", "1")
    assert text == ""
    assert not memory.keys() & {"available", "fits"}


def test_plan_as_json_with_overridden_fields(hftitan, job):
    job()
    result = hftitan("plan", "job.yaml", "-o", "json", "--set", "spec.mesh.tp=4", "--set", "metadata.name=other")
    assert result.exit_code == 0
    plan = json.loads(result.stdout)
    assert (plan["job"], plan["mesh"], plan["worldSize"]) == ("other", "2x4: dp2 tp4", 8)
    assert plan["groups"]["tp"] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert plan["nodes"] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_plan_estimates_memory_if_the_model_is_known(hftitan, job, model):
    job(model={"name": model}, mesh={"gpusPerNode": 2}, training={"steps": 1, "seqLen": 64})
    text = hftitan("plan", "job.yaml").stdout
    assert "134,515,008 parameters" in text
    plan = json.loads(hftitan("plan", "job.yaml", "-o", "json").stdout)
    assert plan["memory"]["parameters"] == 134_515_008 * 4 // 2
    assert plan["memory"]["total"] > plan["memory"]["parameters"] * 4 - 1
    assert plan["memory"]["hostPerNode"] == 0
    assert "host  " not in text


def test_plan_includes_the_copy_for_asynchronous_checkpoints(hftitan, job, model):
    checkpoint = {"asyncMode": "async", "interval": 10}
    training = {"steps": 1, "seqLen": 64}
    job(model={"name": model}, mesh={"gpusPerNode": 2}, training=training, checkpoint=checkpoint)
    line = "host     about 1.50 GiB on each node for the copies that asyncMode saves from\n"
    assert line in hftitan("plan", "job.yaml").stdout
    assert json.loads(hftitan("plan", "job.yaml", "-o", "json").stdout)["memory"]["hostPerNode"] == 12 * 134_515_008
    tight = hftitan("plan", "job.yaml", "--set", "spec.pod.resources.requests.memory=2Gi").stdout
    warning = "; the pods request 2Gi: raise spec.pod.resources.requests.memory well above 2564Mi (with /dev/shm)"
    assert warning in " ".join(tight.split())
    job(model={"name": model}, mesh={"device": "cpu"}, training=training, checkpoint=checkpoint)
    assert ", staged 1.50)" in " ".join(hftitan("plan", "job.yaml").stdout.split())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("spec.mesh.tp", "--set spec.mesh.tp: use FIELD=VALUE, such as spec.training.steps=5"),
        ("spec..tp=1", "--set spec..tp=1: use FIELD=VALUE, such as spec.training.steps=5"),
        ("spec.mesh.tp.x=1", "--set spec.mesh.tp.x: spec.mesh.tp is not a mapping"),
        ("spec.mesh.tpp=1", "job.yaml: spec.mesh.tpp: "),
        ("spec.mesh.tp=many", "job.yaml: spec.mesh.tp: "),
    ],
)
def test_invalid_set_options(hftitan, job, setting, message):
    job()
    result = hftitan("plan", "job.yaml", "--set", setting)
    assert result.exit_code == 2
    assert result.stderr.startswith(message)


# --- render, crd --------------------------------------------------------------------------------------------


def test_render_prints_the_objects_of_the_cluster(hftitan, job):
    job()
    result = hftitan("render", "job.yaml")
    assert result.exit_code == 0
    objects = list(yaml.safe_load_all(result.stdout))
    assert [each["kind"] for each in objects] == ["Service", "ConfigMap", "Pod", "Pod"]
    assert [each["metadata"]["name"] for each in objects] == ["tiny", "tiny-config", "tiny-1-0", "tiny-1-1"]
    as_json = json.loads(hftitan("render", "job.yaml", "-o", "json").stdout)
    assert as_json["kind"] == "List"
    assert as_json["items"] == objects
    assert "trainer.json: |\n" in result.stdout


@pytest.mark.parametrize("golden", sorted((ROOT / "tests/core/golden").glob("*.yaml")), ids=lambda path: path.stem)
def test_yaml_is_the_same_with_and_without_libyaml(golden):
    """libyaml's emitter is four times faster."""
    assert issubclass(plan_text._Dumper, yaml.CSafeDumper)

    class Slow(yaml.SafeDumper):
        def ignore_aliases(self, data):
            return True

    Slow.add_representer(str, plan_text._text)
    objects = list(yaml.safe_load_all(golden.read_text()))
    text = plan_text.objects_text(objects, "yaml")
    assert text == "".join("---\n" + yaml.dump(o, Dumper=Slow, sort_keys=False, width=120) for o in objects)
    assert list(yaml.safe_load_all(text)) == objects


def test_yaml_of_any_text_is_read_back():
    values = [
        "a: b # c",
        "x " * 200,
        "é データ 😀\u2028",
        "tab\t \n  two\n\n",
        "\r",
        "\x00",
        "~",
        "1e3",
        "'\"",
        "-",
        "no",
        "",
    ]
    objects = [{"kind": "ConfigMap", "data": {**dict(zip(values, values, strict=True)), "list": values}}]
    assert list(yaml.safe_load_all(plan_text.objects_text(objects, "yaml"))) == objects


def test_render_another_attempt(hftitan, job):
    job()
    objects = list(yaml.safe_load_all(hftitan("render", "job.yaml", "--attempt", "3").stdout))
    assert objects[2]["metadata"]["name"] == "tiny-3-0"


def test_render_prints_the_objects_of_a_gang_scheduler(hftitan, job):
    job(scheduling={"gang": "volcano", "queue": "research"})
    group, *_, pod = yaml.safe_load_all(hftitan("render", "job.yaml", "--attempt", "2").stdout)
    assert (group["kind"], group["spec"]) == ("PodGroup", {"minMember": 2, "queue": "research"})
    assert pod["metadata"]["annotations"]["scheduling.k8s.io/group-name"] == group["metadata"]["name"]
    assert group["metadata"]["name"] == "tiny-00000000-2"


def test_render_rejects_an_invalid_job(hftitan, job):
    job(mesh={"nodes": 2, "gpusPerNode": 4, "tp": 3})
    result = hftitan("render", "job.yaml")
    assert (result.exit_code, result.stdout) == (2, "")


def test_crd(hftitan):
    result = hftitan("crd")
    assert result.exit_code == 0
    assert yaml.safe_load(result.stdout)["metadata"]["name"] == "hftitanjobs.hftitan.io"


def test_rbac_of_a_cluster_and_of_namespaces(hftitan):
    def kinds(*arguments):
        result = hftitan("rbac", *arguments)
        assert result.exit_code == 0
        return [
            (o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"])
            for o in yaml.safe_load_all(result.stdout)
        ]

    own = [
        ("ServiceAccount", "hftitan-system", "hftitan-operator"),
        ("Role", "hftitan-system", "hftitan-operator-lease"),
        ("RoleBinding", "hftitan-system", "hftitan-operator-lease"),
    ]
    assert kinds() == [
        *own,
        ("ClusterRole", None, "hftitan-system:hftitan-operator"),
        ("ClusterRoleBinding", None, "hftitan-system:hftitan-operator"),
    ]
    team = [("Role", "team", "hftitan-operator"), ("RoleBinding", "team", "hftitan-operator")]
    assert kinds("--namespace", "team") == [*own, *team]
    elsewhere = ["--operator-namespace", "ml", "--service-account", "bot", "--namespace", "a", "--namespace", "b"]
    assert kinds(*elsewhere, "--with-nodes") == [
        ("ServiceAccount", "ml", "bot"),
        ("Role", "ml", "bot-lease"),
        ("RoleBinding", "ml", "bot-lease"),
        ("Role", "a", "bot"),
        ("RoleBinding", "a", "bot"),
        ("Role", "b", "bot"),
        ("RoleBinding", "b", "bot"),
        ("ClusterRole", None, "ml:bot-nodes"),
        ("ClusterRoleBinding", None, "ml:bot-nodes"),
    ]


def test_rbac_with_gangs_extends_the_same_role(hftitan):
    def groups(*arguments):
        objects = yaml.safe_load_all(hftitan("rbac", "--namespace", "team", *arguments).stdout)
        (role,) = (o for o in objects if (o["kind"], o["metadata"].get("namespace")) == ("Role", "team"))
        return {group for rule in role["rules"] for group in rule["apiGroups"]}

    more = {"kueue.x-k8s.io", "scheduling.volcano.sh", "scheduling.x-k8s.io", "scheduling.run.ai", "scheduling.k8s.io"}
    assert groups("--with-gangs") == groups() | more
    assert not groups() & more


def test_rbac_rejects_an_invalid_namespace(hftitan):
    result = hftitan("rbac", "--namespace", "Team A")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "hftitan rbac: 'Team A' is not a valid namespace name; use at most 63 lower-case letters, digits and '-'\n"
    )


# --- run: errors before anything starts -------------------------------------------------------------

CPU = {"nodes": 2, "device": "cpu"}
DATA_VOLUME = {"name": "data", "persistentVolumeClaim": {"claimName": "c"}}


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        (
            {"runPolicy": {"suspend": True}},
            [],
            "spec.runPolicy.suspend: a suspended local run would never be resumed; ",
        ),
        (
            {"pod": {"runtimeClassName": "gvisor"}},
            [],
            "spec.pod.runtimeClassName: a local run cannot isolate pods with 'gvisor'; ",
        ),
        (
            {"pod": {"hfTokenSecret": {"name": "s"}}},
            [],
            "spec.pod.hfTokenSecret: exists only on a cluster; for a local run, set HF_TOKEN ",
        ),
        (
            {"pod": {"env": [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s"}}}]}},
            [],
            "spec.pod.env[0].valueFrom: exists only on a cluster; for a local run, set KEY in the environment",
        ),
        (
            {"pod": {"volumes": [DATA_VOLUME]}},
            [],
            "spec.pod.volumes[0]: 'data' exists only on a cluster; map it to a folder: --volume data=FOLDER",
        ),
        (
            {"pod": {"volumes": [DATA_VOLUME]}},
            ["--volume", "data=/nonsuch"],
            "--volume: data: /nonsuch is not a folder",
        ),
        ({}, ["--volume", "data=."], "--volume: data: no such volume in spec.pod.volumes; existing: none"),
        (
            {"dataset": {"path": "/nonsuch/text"}},
            [],
            "spec.dataset.path: /nonsuch/text is not on this machine; use an existing file or folder",
        ),
        ({"model": {"name": "/nonsuch"}}, [], "spec.model.name: /nonsuch is not a folder on this machine; "),
        (
            {"mesh": {"nodes": 2, "gpusPerNode": 4}},
            [],
            "spec.mesh.gpusPerNode: 2 x 4 = 8 GPUs, but this machine has 1; use fewer, or device: cpu",
        ),
    ],
)
def test_run_rejects_a_field_by_its_path(hftitan, job, tmp_path, monkeypatch, spec, arguments, message):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    job(**({"mesh": CPU, "training": {"steps": 1, "seqLen": 64}} | spec))
    result = hftitan("run", "job.yaml", *arguments)
    assert result.exit_code == 2
    assert f"job.yaml: {message}" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_run_rejects_a_volume_without_a_folder(hftitan, job):
    job(mesh=CPU)
    result = hftitan("run", "job.yaml", "--volume", "data")
    assert (result.exit_code, result.stderr) == (2, "--volume data: use NAME=FOLDER\n")


def test_run_rejects_a_damaged_status(hftitan, job, tmp_path):
    job(mesh=CPU, training={"steps": 1, "seqLen": 64})
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "status.json").write_text('{"uid": 3')
    result = hftitan("run", "job.yaml", "--workdir", "w")
    assert result.exit_code == 2
    assert "status.json is damaged" in result.stderr


# --- the program itself -------------------------------------------------------------------------------------


def test_version(hftitan):
    result = hftitan("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("hftitan 0.")


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        (["--help"], ()),
        (["validate", "job.yaml"], ("pydantic", "yaml")),
        (["render", "job.yaml"], ("pydantic", "yaml")),
        (["rbac"], ("pydantic", "yaml")),
    ],
)
def test_nothing_heavy_is_imported(hftitan, job, arguments, allowed):
    job()
    heavy = ["torch", "transformers", "kopf", "kubernetes", "huggingface_hub", "rich", "asyncio", "pydantic", "yaml"]
    code = (
        "import sys\nfrom hftitan_operator.cli.main import main\n"
        f"try: main({arguments!r})\nexcept SystemExit as end: assert end.code in (0, None), end\n"
        f"print('LOADED', [name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == f"LOADED {list(allowed)}"
