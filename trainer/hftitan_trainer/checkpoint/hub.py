"""Pushes the export to the Hugging Face hub: `spec.checkpoint.pushToHub`.

Before the first step the repository is made and the right to write there asked for, so that a bad token costs no
training. After the export, files go up one by one and become visible in one commit at the end; what the hub has already
is not sent again, so a push that was cut off goes on where it was, and a second one of the same export changes nothing.
The folder on disk is never touched.
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
"""Seconds between tries of the push, on top of the client's own; eight minutes in all."""
WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")
"""Of an earlier export, deleted in the same commit: `from_pretrained` would prefer a single file to newer shards."""
_WORTH_ANOTHER_TRY = {408, 409, 412, 423, 425, 429}
_QUERY = re.compile(r"\?[^\s'\")]+")

T = TypeVar("T")


def client() -> HfApi:
    """Of the hub at HF_ENDPOINT, with HF_TOKEN. Raises UserError when there is no token, or no hub to be asked."""
    from huggingface_hub import HfApi, constants

    if constants.is_offline_mode():
        raise UserError(FIELD, "the hub is off limits while HF_HUB_OFFLINE is set; remove one of them")
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise UserError("spec.pod.hfTokenSecret", f"is needed for {FIELD}: HF_TOKEN is not set")
    return HfApi(token=token)


def prepare(push: HubPushSpec, api: HfApi) -> None:
    """Make the repository unless it is there, and see that it may be written to and is as private as asked for.

    Raises UserError for what the user must fix. A hub that does not answer is only told of: it is asked again at the
    end.
    """
    from huggingface_hub.errors import HFValidationError

    try:
        _prepare(push, api)
    except TrainerError:
        raise
    except HFValidationError as error:
        raise UserError(f"{FIELD}.repo", f"{push.repo} is no name of a repository: {words(error)}") from None
    except Exception as error:
        mistake = _mistake(error, push.repo)
        if mistake is not None:
            raise mistake from None
        logger.warning("%s: %s; it is asked again after the training", push.repo, words(error))


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

    Raises UserError when the hub refuses (the token, the repository, a quota), NetworkError when it cannot be reached
    through all `pauses` (seconds); both say where the export is.
    """
    kept = f"; the export is kept at {folder}"
    for pause in (*pauses, None):
        try:
            _prepare(push, api)
            return _upload(folder, push.repo, api, message, moved)
        except UserError as error:
            raise UserError(error.path, error.message + kept) from None
        except Exception as error:
            mistake = _mistake(error, push.repo)
            if mistake is not None:
                raise UserError(mistake.path, mistake.message + kept) from None
            if pause is None:
                # No cause: its text may hold signed addresses.
                raise NetworkError(
                    f"all steps are done, but the push to {push.repo} failed: {words(error)}{kept}, and a new attempt "
                    "goes on from the last checkpoint"
                ) from None
            logger.warning("push to %s: %s; again in %d s", push.repo, words(error), pause)
        time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _prepare(push: HubPushSpec, api: HfApi) -> None:
    api.create_repo(push.repo, private=push.private, exist_ok=True)
    api.auth_check(push.repo, write=True)
    if push.private and not api.repo_info(push.repo).private:
        raise UserError(
            f"{FIELD}.private",
            f"{push.repo} is there already and public; set private: false to publish the model there, make it private, "
            "or name another repository",
        )


def _upload(folder: Path, repo: str, api: HfApi, message: str, moved: Callable[[], None]) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    if not (folder / "config.json").is_file():
        # A shared folder may show a little later what another pod wrote.
        raise FileNotFoundError(f"{folder} is not there yet")
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


def _mistake(error: Exception, repo: str) -> UserError | None:
    """What the user must fix; None if a retry may succeed."""
    # Of the hub's own answer: that of a store it sends files to (an address past its time) may differ next time.
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return UserError("spec.pod.hfTokenSecret", f"the hub does not know this token (401), so {repo} stays as it is")
    if status == 403:
        return UserError(
            "spec.pod.hfTokenSecret",
            f"the token may not write to {repo} (403: {words(error)}); give one with write access there",
        )
    if status is not None and 400 <= status < 500 and status not in _WORTH_ANOTHER_TRY:
        return UserError(f"{FIELD}.repo", f"the hub refuses {repo}: {words(error)}")
    return None


def words(error: BaseException) -> str:
    """An error in one line, without the queries of addresses: they may be signatures."""
    text = _QUERY.sub("", " ".join(str(error).split()))[:500]
    return text if hasattr(error, "response") else f"{type(error).__name__}: {text}"
