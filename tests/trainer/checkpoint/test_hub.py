"""Pushing the export to a stand-in of the hub: private, at once visible or not at all, and told apart by who can mend
it."""

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
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its store is no HTTP server that could be stood in for
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with hub_server.Hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)  # as HF_ENDPOINT does where the library is imported anew
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


def test_private_by_default_all_files_in_one_commit(hub: hub_server.Hub, export: Path) -> None:
    moved: list[int] = []
    url = push(hub, export, moved=lambda: moved.append(len(hub.blobs)))
    repo = hub.repos[REPO]
    assert repo.private
    assert repo.commits == ["tiny: step 3"]
    assert url == f"{hub.url}/{REPO}/commit/{repo.sha}"
    assert repo.files == {p.relative_to(export).as_posix(): p.read_bytes() for p in export.rglob("*") if p.is_file()}
    assert repo.lfs == {"model.safetensors"}
    assert len(moved) == 4  # a long push is no hanging one


def test_public_when_asked_for(hub: hub_server.Hub, export: Path) -> None:
    push(hub, export, HubPushSpec(repo=REPO, private=False))
    assert not hub.repos[REPO].private


def test_a_second_push_changes_nothing_and_a_new_export_leaves_no_old_weights(
    hub: hub_server.Hub, export: Path
) -> None:
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
    assert sum(line.startswith("PUT") for line in hub.asked) == 1  # the same bytes by another name


def test_a_public_repository_is_not_pushed_to_unasked(hub: hub_server.Hub, export: Path) -> None:
    hub.repos[REPO] = hub_server.Repo(private=False)
    message = rf"spec\.checkpoint\.pushToHub\.private: {REPO} is there already and public; set private: false"
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
            r"spec\.pod\.hfTokenSecret: the hub does not know this token \(401\)",
        ),
        (hub_server.READ_ONLY, "acme/there", r"spec\.pod\.hfTokenSecret: the token may not write to acme/there \(403"),
        (hub_server.TOKEN, "others/tiny", r"hfTokenSecret: the token may not write to others/tiny \(403.*namespace"),
        (hub_server.TOKEN, "acme/a--b", r"spec\.checkpoint\.pushToHub\.repo: acme/a--b is no name of a repository"),
    ],
)
def test_a_mistake_is_told_before_the_training(hub: hub_server.Hub, token: str, repo: str, told: str) -> None:
    hub.repos["acme/there"] = hub_server.Repo(private=True)
    with pytest.raises(UserError, match=told) as error:
        pushing.prepare(HubPushSpec(repo=repo), api(hub, token))
    assert token not in str(error.value)


def test_a_hub_that_is_away_before_the_training_does_not_stop_it(
    hub: hub_server.Hub, caplog: pytest.LogCaptureFixture
) -> None:
    hub.fail("POST /api/repos/create", 503)
    pushing.prepare(PUSH, api(hub))
    assert "it is asked again after the training" in caplog.text
    pushing.prepare(PUSH, api(hub))
    assert hub.repos[REPO].private


@pytest.mark.parametrize(
    "request_", ["POST /api/repos/create", "POST .*/commit/main", "POST /api/validate-yaml", "PUT "]
)
def test_a_hub_that_is_away_for_a_moment_is_asked_again(
    hub: hub_server.Hub, export: Path, request_: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Of a PUT the client itself tries again what is a server's error, but not that an address has expired.
    hub.fail(request_, 403 if request_ == "PUT " else 503)
    push(hub, export, pauses=(0.0,))
    assert hub.repos[REPO].commits == ["tiny: step 3"]
    assert "again in 0 s" in caplog.text
    assert "X-Amz-Signature" not in caplog.text


def test_a_hub_that_stays_away_leaves_the_export_and_may_be_tried_again(hub: hub_server.Hub, export: Path) -> None:
    before = {path: path.read_bytes() for path in export.rglob("*") if path.is_file()}
    hub.fail("POST .*/commit/main", 503, 503)
    with pytest.raises(NetworkError) as error:
        push(hub, export, pauses=(0.0,))
    assert error.value.retryable
    assert str(error.value).startswith(f"all steps are done, but the push to {REPO} failed: ")
    assert f"; the export is kept at {export}, and a new attempt goes on from the last checkpoint" in str(error.value)
    assert {path: path.read_bytes() for path in export.rglob("*") if path.is_file()} == before


def test_an_export_that_a_shared_folder_shows_later(hub: hub_server.Hub, export: Path) -> None:
    export.rename(export.with_name("elsewhere"))
    with pytest.raises(NetworkError, match="is not there yet"):
        push(hub, export)
    assert hub.repos[REPO].commits == []


def test_a_token_that_was_revoked_meanwhile_is_not_tried_again(hub: hub_server.Hub, export: Path) -> None:
    hub.fail("POST .*/commit/main", 401)
    with pytest.raises(UserError, match=rf"hfTokenSecret: .*401.*; the export is kept at {export}") as error:
        push(hub, export, pauses=(0.0, 0.0))
    assert not error.value.retryable
    assert sum("commit" in line for line in hub.asked) == 1


def test_no_token_and_no_hub(hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UserError, match=r"spec\.pod\.hfTokenSecret: is needed for .* HF_TOKEN is not set"):
        pushing.client()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"spec\.checkpoint\.pushToHub: the hub is off limits while HF_HUB_OFFLINE"):
        pushing.client()


def test_of_two_pods_one_ends_while_the_other_pushes(tmp_path: Path, tokenizer: Any, hub: hub_server.Hub) -> None:
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


def test_a_push_that_failed_after_the_other_pods_ended_does_not_wait_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun would restart this pod's workers, and they the rendezvous."""
    calls: list[str] = []
    monkeypatch.setattr(main.signals, "stop_agent", lambda: calls.append("agent stopped"))
    monkeypatch.setattr(main, "_exit", lambda code: calls.append(f"exit {code}"))
    for ended in (False, True):
        life = main.Life.__new__(main.Life)
        life.rank, life.observer, life.reporter, life.stop = 0, None, Reporter(None), lambda: True  # type: ignore[assignment]
        life.other_pods_ended = ended
        life._fail(NetworkError("the hub is away"))
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


def test_a_run_whose_push_was_refused_keeps_its_export_and_the_next_attempt_only_pushes(
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
    assert report.message.startswith(f"spec.pod.hfTokenSecret: the token may not write to {REPO} (403")
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
    assert b"base_model" not in repo.files["README.md"]  # a folder of this machine
    assert str(tmp_path).encode() not in repo.files["README.md"]
    assert hub_server.TOKEN not in second.log()
