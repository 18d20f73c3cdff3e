"""Pushes the export to a fake hub: private, in one commit, with errors of the user told apart from those of the
network."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hub_server
import pytest
import runs
from huggingface_hub import HfApi, constants

from hftitan_api.models import HubPushSpec
from hftitan_trainer import __main__ as main
from hftitan_trainer.checkpoint import hub as pushing
from hftitan_trainer.process.errors import NetworkError, UserError
from hftitan_trainer.process.report import Reporter

REPO = "acme/tiny"
PUSH = HubPushSpec(repo=REPO)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the fake hub does not have its file store
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with hub_server.Hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)  # as HF_ENDPOINT does in a new process
        yield hub


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    (folder / "additional_chat_templates").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\n# tiny\n")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "additional_chat_templates/tools.jinja").write_text("{{ x }}")
    return folder


def api(hub: hub_server.Hub, token: str = hub_server.TOKEN) -> HfApi:
    return HfApi(endpoint=hub.url, token=token)


def push(hub: hub_server.Hub, export: Path, spec: HubPushSpec = PUSH, **more: Any) -> str:
    return pushing.upload(export, spec, api(hub), message="tiny: step 3", pauses=more.pop("pauses", ()), **more)


def test_a_push_is_private_by_default_and_in_one_commit(hub: hub_server.Hub, export: Path) -> None:
    moved: list[int] = []
    url = push(hub, export, moved=lambda: moved.append(len(hub.blobs)))
    repo = hub.repos[REPO]
    assert repo.private
    assert repo.commits == ["tiny: step 3"]
    assert url == f"{hub.url}/{REPO}/commit/{repo.sha}"
    assert repo.files == {p.relative_to(export).as_posix(): p.read_bytes() for p in export.rglob("*") if p.is_file()}
    assert repo.lfs == {"model.safetensors"}
    assert len(moved) == 4  # shows progress, so a long push does not count as hung


def test_a_push_is_public_if_requested(hub: hub_server.Hub, export: Path) -> None:
    push(hub, export, HubPushSpec(repo=REPO, private=False))
    assert not hub.repos[REPO].private


def test_a_second_push_changes_nothing_and_a_new_export_deletes_old_weights(hub: hub_server.Hub, export: Path) -> None:
    first = push(hub, export)
    assert push(hub, export) == first
    assert hub.repos[REPO].commits == ["tiny: step 3"]
    assert sum(line.startswith("PUT") for line in hub.asked) == 1

    hub.repos[REPO].files["notes.md"] = b"theirs"
    (export / "model.safetensors").rename(export / "model-00001-of-00001.safetensors")
    (export / "model.safetensors.index.json").write_text("{}")
    push(hub, export)
    assert {"notes.md", "model-00001-of-00001.safetensors"} < set(hub.repos[REPO].files)
    assert "model.safetensors" not in hub.repos[REPO].files
    assert sum(line.startswith("PUT") for line in hub.asked) == 1  # the same bytes with another name


def test_a_push_to_a_public_repository_is_refused_by_default(hub: hub_server.Hub, export: Path) -> None:
    hub.repos[REPO] = hub_server.Repo(private=False)
    message = rf"spec\.checkpoint\.pushToHub\.private: {REPO} already exists and is public; set private: false"
    with pytest.raises(UserError, match=message):
        pushing.prepare(PUSH, api(hub))
    with pytest.raises(UserError, match=f"public.*; the export is kept at {export}"):
        push(hub, export)
    assert hub.repos[REPO].files == {}


@pytest.mark.parametrize(
    ("token", "repo", "told"),
    [
        (
            "hf_ofNobody12345678901234567890",
            REPO,
            r"spec\.pod\.hfTokenSecret: the hub rejects this token \(401\)",
        ),
        (
            hub_server.READ_ONLY,
            "acme/there",
            r"spec\.pod\.hfTokenSecret: the token has no permission to write to acme/there \(403",
        ),
        (
            hub_server.TOKEN,
            "others/tiny",
            r"hfTokenSecret: the token has no permission to write to others/tiny \(403.*namespace",
        ),
        (hub_server.TOKEN, "acme/a--b", r"spec\.checkpoint\.pushToHub\.repo: acme/a--b is not a valid repository name"),
    ],
)
def test_a_user_error_is_found_before_the_training(hub: hub_server.Hub, token: str, repo: str, told: str) -> None:
    hub.repos["acme/there"] = hub_server.Repo(private=True)
    with pytest.raises(UserError, match=told) as error:
        pushing.prepare(HubPushSpec(repo=repo), api(hub, token))
    assert token not in str(error.value)


def test_an_unavailable_hub_does_not_prevent_the_training(
    hub: hub_server.Hub, caplog: pytest.LogCaptureFixture
) -> None:
    hub.fail("POST /api/repos/create", 503)
    pushing.prepare(PUSH, api(hub))
    assert f"cannot check {REPO}: " in caplog.text
    assert "; trying again after the training" in caplog.text
    pushing.prepare(PUSH, api(hub))
    assert hub.repos[REPO].private


@pytest.mark.parametrize(
    "request_", ["POST /api/repos/create", "POST .*/commit/main", "POST /api/validate-yaml", "PUT "]
)
def test_a_push_is_retried_when_the_hub_is_briefly_unavailable(
    hub: hub_server.Hub, export: Path, request_: str, caplog: pytest.LogCaptureFixture
) -> None:
    # The client itself retries a PUT after a server's error, but not after an expired URL.
    hub.fail(request_, 403 if request_ == "PUT " else 503)
    push(hub, export, pauses=(0.0,))
    assert hub.repos[REPO].commits == ["tiny: step 3"]
    assert "; trying again in 0 s" in caplog.text
    assert "X-Amz-Signature" not in caplog.text


def test_a_push_that_keeps_failing_is_retryable_and_keeps_the_export(hub: hub_server.Hub, export: Path) -> None:
    before = {path: path.read_bytes() for path in export.rglob("*") if path.is_file()}
    hub.fail("POST .*/commit/main", 503, 503)
    with pytest.raises(NetworkError) as error:
        push(hub, export, pauses=(0.0,))
    assert error.value.retryable
    assert str(error.value).startswith(f"all steps are done, but the push to {REPO} failed: ")
    assert f"; the export is kept at {export}, and a new attempt resumes from the last checkpoint" in str(error.value)
    assert {path: path.read_bytes() for path in export.rglob("*") if path.is_file()} == before


def test_an_export_that_is_not_visible_yet_is_retryable(hub: hub_server.Hub, export: Path) -> None:
    export.rename(export.with_name("elsewhere"))
    with pytest.raises(NetworkError, match="does not exist yet"):
        push(hub, export)
    assert hub.repos[REPO].commits == []


def test_a_push_with_a_revoked_token_is_not_retried(hub: hub_server.Hub, export: Path) -> None:
    hub.fail("POST .*/commit/main", 401)
    with pytest.raises(UserError, match=rf"hfTokenSecret: .*401.*; the export is kept at {export}") as error:
        push(hub, export, pauses=(0.0, 0.0))
    assert not error.value.retryable
    assert sum("commit" in line for line in hub.asked) == 1


def test_a_missing_token_and_offline_mode_are_user_errors(hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UserError, match=r"spec\.pod\.hfTokenSecret: is required by .* HF_TOKEN is not set"):
        pushing.client()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"spec\.checkpoint\.pushToHub: cannot push while HF_HUB_OFFLINE"):
        pushing.client()


def test_one_of_two_pods_exits_while_the_other_pushes(tmp_path: Path, tokenizer: Any, hub: hub_server.Hub) -> None:
    home = runs.make_home(tmp_path / "home", tokenizer)
    released = hub.hold("POST .*/commit/main")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        rendezvous = f"127.0.0.1:{probe.getsockname()[1]}"
    pods = []
    for index in range(2):
        torchrun = (
            "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d",
            "--rdzv-endpoint", rendezvous, "--rdzv-conf", f"is_host={index == 0}",
            "--local-addr", f"127.0.0.{2 - index}",  # ranks follow addresses: rank 0 is in pod 1
        )  # fmt: skip
        mesh = {
            "nodes": 2, "ranksPerNode": 1, "dpReplicate": 1, "dpShard": 2, "cp": 1, "tp": 1, "pp": 1, "ep": 1,
            "device": "cpu",
        }  # fmt: skip
        place = {"HFTITAN_NODE_INDEX": str(index), "HFTITAN_OUTPUT": str(tmp_path / "pod0/out")}
        spec = {"training": {"steps": 2, "seqLen": 64, "localBatchSize": 1}, "mesh": mesh, **pushing_spec(hub, **place)}
        pods.append(runs.start(tmp_path / f"pod{index}", home, ranks=1, launcher=torchrun, **spec))
    try:
        until(lambda: any("/commit/" in line for line in hub.asked), pods)
        until(lambda: (pods[1].folder / "termination").read_text() != "", pods)
        assert {pod.process.poll() for pod in pods} == {None}
        assert '"phase":"pushing"' in pods[0].get("/progress").replace(" ", "")
        assert (pods[0].folder / "termination").read_text() == ""
        assert pods[1].report().reason == "Completed"
    finally:
        released.set()
        ends = [pod.end() for pod in pods]
    assert ends == [0, 0], pods[0].log() + pods[1].log()
    assert pods[0].report().message.startswith("all 2 steps done, pushed as ")
    assert (pods[0].report().rank, pods[1].report().rank) == (1, 0)
    assert len(hub.repos[REPO].commits) == 1


def until(seen: Callable[[], bool], pods: list[runs.Run]) -> None:
    deadline = time.monotonic() + 240
    while not seen():
        assert time.monotonic() < deadline, "\n".join(pod.log() for pod in pods)
        assert {pod.process.poll() for pod in pods} == {None}, "\n".join(pod.log() for pod in pods)
        time.sleep(0.05)


def test_a_push_that_failed_after_the_other_pods_exited_does_not_wait_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun would restart this pod's workers, which would wait in the rendezvous."""
    calls: list[str] = []
    monkeypatch.setattr(main.signals, "stop_agent", lambda: calls.append("agent stopped"))
    monkeypatch.setattr(main, "_exit", lambda code: calls.append(f"exit {code}"))
    for ended in (False, True):
        process = main.RankProcess.__new__(main.RankProcess)
        process.rank, process.observer, process.reporter, process.stop = 0, None, Reporter(None), lambda: True  # type: ignore[assignment]
        process.other_pods_ended = ended
        process._fail(NetworkError("the hub is unavailable"))
    assert calls == ["exit 1", "agent stopped", "exit 1"]


def pushing_spec(hub: hub_server.Hub, **env: str) -> dict[str, Any]:
    return {
        "checkpoint": {"interval": 0, "pushToHub": {"repo": REPO}},
        "env": {
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": hub_server.TOKEN,
            **env,
        },
    }


def test_a_refused_push_keeps_the_export_and_the_next_attempt_only_pushes(
    tmp_path: Path, tokenizer: Any, hub: hub_server.Hub
) -> None:
    home = runs.make_home(tmp_path / "home", tokenizer)
    spec = {"training": {"steps": 2, "seqLen": 64, "localBatchSize": 1}, **pushing_spec(hub)}
    hub.fail("POST .*/commit/main", 403)
    first = runs.start(tmp_path / "run", home, ranks=1, **spec)
    assert first.end() != 0
    report = first.report()
    export = first.output / "export"
    assert (report.reason, report.retryable, report.step, report.export_path) == ("UserError", False, 2, str(export))
    assert report.message.startswith(f"spec.pod.hfTokenSecret: the token has no permission to write to {REPO} (403")
    assert report.message.endswith(f"; the export is kept at {export}")
    assert (export / "model.safetensors").is_file()
    assert hub.repos[REPO].private
    assert hub.repos[REPO].files == {}
    assert hub_server.TOKEN not in first.log()

    second = runs.start(tmp_path / "run", home, ranks=1, attempt=2, **spec)
    assert second.end() == 0, second.log()
    repo = hub.repos[REPO]
    assert second.report().message == f"all 2 steps done, pushed as {hub.url}/{REPO}/commit/{repo.sha}"
    assert second.lines("push") == [{**second.lines("push")[0], "url": f"{hub.url}/{REPO}/commit/{repo.sha}"}]
    assert [line["attempt"] for line in second.lines("step")] == [1, 1]
    assert repo.files["model.safetensors"] == (export / "model.safetensors").read_bytes()
    assert b"base_model" not in repo.files["README.md"]  # the base is a local folder
    assert str(tmp_path).encode() not in repo.files["README.md"]
    assert hub_server.TOKEN not in second.log()
