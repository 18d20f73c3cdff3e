"""Pushes the export to the Hugging Face hub: `spec.checkpoint.pushToHub`.

Before the first step, the repository is created and the write permission is checked, so that a bad token wastes no
training. After the export, files are uploaded one by one and become visible in one commit at the end. Files that the
hub already has are not sent again: an interrupted push resumes, and a second push of the same export changes nothing.
The folder on disk is never changed.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hftitan_trainer.process.errors import NetworkError, TrainerError, UserError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from hftitan_api.models import HubPushSpec

logger = logging.getLogger(__name__)

FIELD = "spec.checkpoint.pushToHub"
PAUSES = (5.0, 15.0, 30.0, 60.0, 120.0, 240.0)
"""Seconds between attempts to push, besides the client's own retries; eight minutes in total."""
WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")
"""Weights of an earlier export are deleted in the same commit: `from_pretrained` would prefer a single old file to new
shards."""
_WORTH_ANOTHER_TRY = {408, 409, 412, 423, 425, 429}
_QUERY = re.compile(r"\?[^\s'\")]+")

T = TypeVar("T")


def client() -> HfApi:
    """Return a client of the hub at HF_ENDPOINT, with HF_TOKEN. Raises UserError if there is no token, or in offline
    mode."""
    from huggingface_hub import HfApi, constants

    if constants.is_offline_mode():
        raise UserError(FIELD, "cannot push while HF_HUB_OFFLINE is set; remove one of them")
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise UserError("spec.pod.hfTokenSecret", f"is required by {FIELD}, but HF_TOKEN is not set; set it")
    return HfApi(token=token)


def prepare(push: HubPushSpec, api: HfApi) -> None:
    """Create the repository if it is missing, and check write permission and visibility.

    Raises UserError for what the user must fix. If the hub does not answer, logs a warning; the push checks again.
    """
    from huggingface_hub.errors import HFValidationError

    try:
        _prepare(push, api)
    except TrainerError:
        raise
    except HFValidationError as error:
        raise UserError(f"{FIELD}.repo", f"{push.repo} is not a valid repository name: {words(error)}") from None
    except Exception as error:
        refusal = _refusal(error, push.repo)
        if refusal is not None:
            raise refusal from None
        logger.warning("cannot check %s: %s; trying again after the training", push.repo, words(error))


def upload(
    folder: Path,
    push: HubPushSpec,
    api: HfApi,
    *,
    message: str,
    moved: Callable[[], None] = lambda: None,
    pauses: Sequence[float] = PAUSES,
) -> str:
    """Push the files of `folder` and return the commit's URL; `moved` is called after each file.

    Raises UserError if the hub refuses (token, repository, quota), NetworkError if it still fails after all `pauses`
    (seconds). Both messages have the path of the export.
    """
    kept = f"; the export is kept at {folder}"
    for pause in (*pauses, None):
        try:
            _prepare(push, api)
            return _upload(folder, push.repo, api, message, moved)
        except UserError as error:
            raise UserError(error.path, error.message + kept) from None
        except Exception as error:
            refusal = _refusal(error, push.repo)
            if refusal is not None:
                raise UserError(refusal.path, refusal.message + kept) from None
            if pause is None:
                # No cause: its text may contain signed URLs.
                raise NetworkError(
                    f"all steps are done, but the push to {push.repo} failed: {words(error)}{kept}, and a new attempt "
                    "resumes from the last checkpoint"
                ) from None
            logger.warning("push to %s failed: %s; trying again in %d s", push.repo, words(error), pause)
        time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _prepare(push: HubPushSpec, api: HfApi) -> None:
    api.create_repo(push.repo, private=push.private, exist_ok=True)
    api.auth_check(push.repo, write=True)
    if push.private and not api.repo_info(push.repo).private:
        raise UserError(
            f"{FIELD}.private",
            f"{push.repo} already exists and is public; set private: false to publish the model there, make it "
            "private, or set another repository",
        )


def _upload(folder: Path, repo: str, api: HfApi, message: str, moved: Callable[[], None]) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    if not (folder / "config.json").is_file():
        # A shared volume may show another pod's files with a delay.
        raise FileNotFoundError(f"{folder} does not exist yet")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    additions = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
    for addition in additions:
        api.preupload_lfs_files(repo, additions=[addition])
        moved()
    new = {addition.path_in_repo for addition in additions}
    stale = [
        name for name in api.list_repo_files(repo) if name not in new and any(fnmatch(name, part) for part in WEIGHTS)
    ]
    operations = [*additions, *(CommitOperationDelete(name) for name in stale)]
    return api.create_commit(repo, operations, commit_message=message).commit_url


def _refusal(error: Exception, repo: str) -> UserError | None:
    """Return a UserError for what the user must fix; None if a retry may succeed."""
    # Only the hub's own response: that of its file store (an expired URL) may differ next time.
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return UserError(
            "spec.pod.hfTokenSecret", f"the hub rejects this token (401), so {repo} is unchanged; set a valid token"
        )
    if status == 403:
        return UserError(
            "spec.pod.hfTokenSecret",
            f"the token has no permission to write to {repo} (403: {words(error)}); set a token with write permission",
        )
    if status is not None and 400 <= status < 500 and status not in _WORTH_ANOTHER_TRY:
        return UserError(f"{FIELD}.repo", f"the hub refuses {repo}: {words(error)}")
    return None


def words(error: BaseException) -> str:
    """Return an error in one line, without the queries of URLs: they may be signatures."""
    text = _QUERY.sub("", " ".join(str(error).split()))[:500]
    return text if hasattr(error, "response") else f"{type(error).__name__}: {text}"
