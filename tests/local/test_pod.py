"""Translation of rendered pod manifests to processes, field by field."""

import copy
from pathlib import Path

import pytest

from hftitan_api.mesh import plan
from hftitan_operator.core.rendering.render import render
from hftitan_operator.local.machine import Machine, Place, Refused
from hftitan_operator.local.pod import translate

PLACE = Place(uid="pod-uid", address="127.3.4.5", rendezvous="127.3.4.4:40000")
CONFIGS = frozenset({"tiny-config"})


def machine(environ=None, **more):
    environ = {"HOME": "/home/me", "PATH": "/bin"} | (environ or {})
    return Machine(Path("/w"), environ, {"hftitan-agent": ("/py", "-m", "torch.distributed.run")}, **more)


@pytest.fixture
def pod(make_job):
    """Function: return the first rendered pod of a job with these sections of the spec."""

    def make(**spec):
        job = make_job(checkpoint={"interval": 2, "volume": "claim"}, **spec)
        job = job.model_copy(update={"metadata": job.metadata.model_copy(update={"uid": "u-1"})})
        return render(job, plan(job.spec), 2).pods[0]

    return make


def test_command_uses_torchrun_of_the_running_interpreter(pod):
    argv = translate(pod(), machine(), PLACE, CONFIGS).argv
    assert argv[:3] == ("/py", "-m", "torch.distributed.run")
    assert {"--nnodes=2", "--shutdown-timeout=375"} < set(argv)
    assert argv[-2:] == ("-m", "hftitan_trainer")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HFTITAN_CONFIG", "/w/.config/tiny-config/trainer.json"),
        ("HFTITAN_OUTPUT", "/w"),
        ("HFTITAN_TERMINATION_LOG", "/w/.pods/tiny-2-0/termination-log"),
        ("HFTITAN_ATTEMPT", "2"),
        ("HFTITAN_NODE_INDEX", "0"),
        ("HFTITAN_POD_IP", "127.3.4.5"),
        ("PET_LOCAL_ADDR", "127.3.4.5"),
        ("PET_RDZV_ENDPOINT", "127.3.4.4:40000"),
        ("PET_RDZV_ID", "u-1-2"),
        ("GLOO_SOCKET_IFNAME", "lo"),
        ("HF_HOME", "/home/me/.cache/huggingface"),
        ("HOME", "/home/me"),
        ("CUDA_VISIBLE_DEVICES", ""),
        ("PYTHON_EXEC", "/w/.pods/rank"),
    ],
)
def test_environment(pod, name, value):
    assert translate(pod(), machine(), PLACE, CONFIGS).env[name] == value


def test_callers_environment_is_inherited_without_torchrun_variables(pod):
    foreign = {
        "RANK": "3",
        "PET_NODE_RANK": "1",
        "TORCHELASTIC_RUN_ID": "x",
        "HFTITAN_OUTPUT": "/x",
        "MASTER_ADDR": "h",
    }
    env = translate(pod(), machine({"https_proxy": "p", **foreign}), PLACE, CONFIGS).env
    assert env["https_proxy"] == "p"
    assert env["HFTITAN_OUTPUT"] == "/w"
    assert not env.keys() & (foreign.keys() - {"HFTITAN_OUTPUT"})


@pytest.mark.parametrize("wanted", [{}, {"cacheVolume": "models"}])
def test_cache_is_the_callers_hf_home(pod, wanted):
    assert translate(pod(pod=wanted), machine({"HF_HOME": "/big/hf"}), PLACE, CONFIGS).env["HF_HOME"] == "/big/hf"


def test_machine_threads_override_omp_num_threads(pod):
    wide = pod(pod={"resources": {"requests": {"cpu": "6"}}})
    assert translate(wide, machine(), PLACE, CONFIGS).env["OMP_NUM_THREADS"] == "6"
    assert translate(wide, machine(threads=2), PLACE, CONFIGS).env["OMP_NUM_THREADS"] == "2"


def test_grace_period_comes_from_the_manifest(pod):
    assert translate(pod(), machine(), PLACE, CONFIGS).grace_seconds == 390


def test_paths_below_mounts_are_rewritten_and_the_longest_mount_wins(pod):
    manifest = pod(
        pod={
            "volumes": [
                {"name": "data", "persistentVolumeClaim": {"claimName": "c"}},
                {"name": "inner", "emptyDir": {}},
            ],
            "volumeMounts": [
                {"name": "data", "mountPath": "/data", "subPath": "a/b"},
                {"name": "inner", "mountPath": "/data/inner"},
            ],
            "env": [
                {"name": "ROOT", "value": "/data"},
                {"name": "FILE", "value": "$(ROOT)/x"},
                {"name": "IN", "value": "/data/inner/y"},
                {"name": "LIKE", "value": "/database"},
                {"name": "DOLLAR", "value": "$$(ROOT) $(NOPE)"},
            ],
        }
    )
    launch = translate(manifest, machine(volumes={"data": Path("/mine")}), PLACE, CONFIGS)
    assert {k: launch.env[k] for k in ("ROOT", "FILE", "IN", "LIKE", "DOLLAR")} == {
        "ROOT": "/mine/a/b",
        "FILE": "/mine/a/b/x",
        "IN": "/w/.pods/tiny-2-0/volumes/inner/y",
        "LIKE": "/database",
        "DOLLAR": "$(ROOT) $(NOPE)",
    }
    assert Path("/mine/a/b") in launch.folders


def test_secret_comes_from_the_callers_variable_of_the_same_name(pod):
    manifest = pod(pod={"env": [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]})
    assert translate(manifest, machine({"KEY": "v"}), PLACE, CONFIGS).env["KEY"] == "v"
    message = r"env\[\d+\]: KEY comes from 's' on a cluster; for a local run, set KEY in the environment"
    with pytest.raises(Refused, match=message):
        translate(manifest, machine(), PLACE, CONFIGS)


def test_gpus_are_split_between_pods(pod):
    manifest = pod(mesh={"nodes": 2, "gpusPerNode": 2})
    four = machine(gpus=("0", "1", "2", "GPU-x"))
    second = Place("u", "127.1.1.1", "127.1.1.1:1", first_gpu=2)
    assert translate(manifest, four, PLACE, CONFIGS).env["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert translate(manifest, four, second, CONFIGS).env["CUDA_VISIBLE_DEVICES"] == "2,GPU-x"
    with pytest.raises(Refused, match=r"spec\.mesh\.gpusPerNode: needs 4 GPUs, but this machine has 3"):
        translate(manifest, machine(gpus=("0", "1", "2")), second, CONFIGS)


def _with(manifest, path, value):
    manifest = copy.deepcopy(manifest)
    target = manifest["spec"]
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return manifest


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["runtimeClassName"], "gvisor", "pod.spec.runtimeClassName: is not supported by `hftitan run`"),
        (["initContainers"], [], "pod.spec.initContainers: is not supported by `hftitan run`"),
        (["hostNetwork"], True, "pod.spec.hostNetwork: is not supported by `hftitan run`"),
        (["containers", 0, "envFrom"], [], "pod.spec.containers[0].envFrom: is not supported by `hftitan run`"),
        (["containers"], [{}, {}], "pod.spec.containers: one container expected, got 2"),
        (["containers", 0, "command"], [], None),
        (
            ["containers", 0, "env", 0],
            {"name": "A", "valueFrom": {"resourceFieldRef": {}}},
            "pod.spec.containers[0].env[0].valueFrom.resourceFieldRef: is not supported by `hftitan run`",
        ),
        (
            ["containers", 0, "env", 0],
            {"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.podIPs"}}},
            "pod.spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: status.podIPs is not supported by "
            "`hftitan run`",
        ),
        (
            ["volumes", 0],
            {"name": "config", "secret": {"secretName": "s"}},
            "pod.spec.volumes[0]: volume 'config' (secret) is not on this machine; "
            "map it to a folder: --volume config=FOLDER",
        ),
    ],
)
def test_unsupported_field_is_refused_by_path(pod, path, value, message):
    manifest = _with(pod(), path, value)
    if message is None:
        manifest["spec"]["containers"][0]["args"] = []
        message = "pod.spec.containers[0].command: a command is required: a local run has no image to take it from"
    with pytest.raises(Refused) as caught:
        translate(manifest, machine(), PLACE, CONFIGS)
    assert str(caught.value) == message


def test_translation_does_not_change_the_manifest(pod):
    manifest = pod()
    before = copy.deepcopy(manifest)
    translate(manifest, machine(), PLACE, CONFIGS)
    assert manifest == before
