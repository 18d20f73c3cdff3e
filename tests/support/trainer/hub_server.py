"""A fake Hugging Face hub on loopback: the part of its API that a push needs, with the hub's checks.

It has repositories with visibility and commits, the preupload answer, git-lfs' batch API with hashed PUTs, and commits
as NDJSON that accept only uploaded files. `fail` makes matching requests return a status, once each.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_theTokenOfTheStandIn1234567890"
READ_ONLY = "hf_theTokenThatMayOnlyRead1234567"
OWNER = "acme"

Answer = tuple[int, Any]
"""Status and JSON document."""


@dataclass
class Repo:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    lfs: set[str] = field(default_factory=set)
    commits: list[str] = field(default_factory=list)
    """Commit messages."""

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr(self.commits).encode()).hexdigest()

    def oid(self, path: str) -> str | None:
        data = self.files.get(path)
        if data is None:
            return None
        if path in self.lfs:
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub:
    """The server and its state; a context manager."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self._faults: list[tuple[str, int]] = []
        self._held: dict[str, threading.Event] = {}
        self._lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            state = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fail(self, request: str, *statuses: int) -> None:
        """Answer the next requests that match this pattern ("POST .*/commit/") with these statuses, in this order."""
        self._faults += [(request, status) for status in statuses]

    def hold(self, request: str) -> threading.Event:
        """Make matching requests wait until the returned event is set."""
        return self._held.setdefault(request, threading.Event())

    def fault(self, request: str) -> int | None:
        with self._lock:
            self.asked.append(request)
            for i, (pattern, status) in enumerate(self._faults):
                if re.match(pattern, request):
                    del self._faults[i]
                    return status
        for pattern, released in self._held.items():
            if re.match(pattern, request):
                released.wait(300)
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Hub

    def log_message(self, *_args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def _serve(self, method: str) -> None:
        body = self._body()
        path = self.path.partition("?")[0]
        status = self.state.fault(f"{method} {path}")
        self._send(*((status, {"error": f"injected: {status}"}) if status else self._answer(method, path, body)))

    def _answer(self, method: str, path: str, body: bytes) -> Answer:
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        # Uploads of files use signed URLs instead of a token.
        if not path.startswith("/lfs/") and token not in (TOKEN, READ_ONLY):
            return 401, {"error": "Invalid username or password."}
        for wanted, pattern, action in _ROUTES:
            found = re.fullmatch(pattern, path)
            if wanted == method and found:
                if action in _WRITES and token != TOKEN:
                    return 403, {"error": "Forbidden: you need write access."}
                answer: Answer = action(self.state, body, *found.groups())
                return answer
        return 404, {"error": f"no such page: {method} {path}"}

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _send(self, status: int, document: Any) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        if status >= 400:
            self.send_header("x-error-message", document["error"])
            if document.get("code"):
                self.send_header("x-error-code", document["code"])
        self.end_headers()
        self.wfile.write(data)


_GONE = (404, {"error": "Repository not found", "code": "RepoNotFound"})


def _create(hub: Hub, body: bytes) -> Answer:
    asked = json.loads(body)
    name = f"{asked['organization']}/{asked['name']}"
    if asked["organization"] != OWNER:
        return 403, {
            "error": f"You don't have the rights to create a model under the namespace {asked['organization']}"
        }
    if name in hub.repos:
        return 409, {"error": "You already created this model repo", "url": f"{hub.url}/{name}"}
    hub.repos[name] = Repo(private=asked.get("visibility") == "private")
    return 200, {"url": f"{hub.url}/{name}", "name": name}


def _may_write(hub: Hub, _body: bytes, name: str) -> Answer:
    return (200, {}) if name in hub.repos else _GONE


def _info(hub: Hub, _body: bytes, name: str) -> Answer:
    if name not in hub.repos:
        return _GONE
    repo = hub.repos[name]
    files = [{"rfilename": path} for path in sorted(repo.files)]
    return 200, {"id": name, "private": repo.private, "sha": repo.sha, "siblings": files}


def _tree(hub: Hub, _body: bytes, name: str) -> Answer:
    repo = hub.repos[name]
    return 200, [
        {"type": "file", "path": path, "size": len(data), "oid": repo.oid(path)} for path, data in repo.files.items()
    ]


def _validate(_hub: Hub, body: bytes) -> Answer:
    front = json.loads(body)["content"].split("---\n")
    if not isinstance(yaml.safe_load(front[1]) if len(front) > 2 else None, dict):
        return 400, {"error": "Invalid metadata", "errors": [{"message": "no front matter"}], "warnings": []}
    return 200, {"errors": [], "warnings": []}


def _preupload(hub: Hub, body: bytes, name: str) -> Answer:
    repo = hub.repos[name]
    return 200, {
        "files": [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith((".safetensors", "tokenizer.json")) else "regular",
                "shouldIgnore": False,
                "oid": repo.oid(file["path"]),
            }
            for file in json.loads(body)["files"]
        ]
    }


def _batch(hub: Hub, body: bytes, _name: str) -> Answer:
    objects = []
    for wanted in json.loads(body)["objects"]:
        found = dict(wanted)
        if wanted["oid"] not in hub.blobs:
            found["actions"] = {"upload": {"href": f"{hub.url}/lfs/{wanted['oid']}?X-Amz-Signature=signed"}}
        objects.append(found)
    return 200, {"transfer": "basic", "objects": objects}


def _store(hub: Hub, body: bytes, oid: str) -> Answer:
    if hashlib.sha256(body).hexdigest() != oid:
        return 400, {"error": "the bytes are not those of this oid"}
    hub.blobs[oid] = body
    return 200, {}


def _commit(hub: Hub, body: bytes, name: str) -> Answer:
    repo = hub.repos[name]
    lines = [json.loads(line) for line in body.splitlines() if line]
    files, lfs = dict(repo.files), set(repo.lfs)
    for line in lines[1:]:
        kind, value = line["key"], line["value"]
        if kind == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif kind == "lfsFile":
            if value["oid"] not in hub.blobs:
                return 422, {"error": f"LFS object {value['oid']} was never uploaded"}
            files[value["path"]] = hub.blobs[value["oid"]]
            lfs.add(value["path"])
        elif kind == "deletedFile":
            del files[value["path"]]
    repo.files, repo.lfs = files, lfs
    repo.commits.append(lines[0]["value"]["summary"])
    return 200, {"success": True, "commitOid": repo.sha, "commitUrl": f"{hub.url}/{name}/commit/{repo.sha}"}


_NAME = r"([^/]+/[^/]+)"
_ROUTES: list[tuple[str, str, Any]] = [
    ("POST", "/api/repos/create", _create),
    ("POST", "/api/validate-yaml", _validate),
    ("GET", f"/api/models/{_NAME}/auth-check/write", _may_write),
    ("GET", f"/api/models/{_NAME}", _info),
    ("GET", f"/api/models/{_NAME}/revision/main", _info),
    ("GET", f"/api/models/{_NAME}/tree/main", _tree),
    ("POST", f"/api/models/{_NAME}/preupload/main", _preupload),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _batch),
    ("PUT", "/lfs/([0-9a-f]+)", _store),
    ("POST", f"/api/models/{_NAME}/commit/main", _commit),
]
_WRITES = {_create, _may_write, _preupload, _batch, _commit}
