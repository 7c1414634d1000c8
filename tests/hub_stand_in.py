"""What a few endpoints of the Hugging Face Hub answer, on the loopback address: enough to push a student and fetch it.

A repository is its branches, a branch the newest of its commits, a commit its files. Every file is taken in with the
commit itself, as the Hub does with small ones.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_theRightOne"
# of the Hub's list, some
LICENCES = ("mit", "apache-2.0", "cc-by-4.0", "other")


@dataclass
class Repository:
    private: bool
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})

    def sha(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)


@dataclass
class StandIn:
    """Attributes:
    asked: "METHOD path" of every request.
    tokens: that came with requests.
    """

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        found = self.repositories[name]
        return found.commits[found.branches[revision]]


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, **more: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.more = status, message, code, more


@contextmanager
def stand_in() -> Iterator[StandIn]:
    state = StandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"state": state}))
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(self._read)

    def do_HEAD(self) -> None:
        self._answer(self._read)

    def do_POST(self) -> None:
        self._answer(self._write)

    def _answer(self, how: Any) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.state.asked.append(f"{self.command} {path}")
        headers: dict[str, str] = {}
        try:
            found = how(path, body)
            status = 200
            if isinstance(found, tuple):
                found, headers = found
        except Refusal as refusal:
            status, found = refusal.status, {"error": refusal.message, **refusal.more}
            headers = {"X-Error-Message": refusal.message}
            headers |= {"X-Error-Code": refusal.code} if refusal.code else {}
        content = found if isinstance(found, bytes) else json.dumps(found).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _allowed(self) -> bool:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if not token:
            return False
        self.state.tokens.add(token)
        if token != TOKEN:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return True

    def _repository(self, name: str, revision: str) -> tuple[Repository, str]:
        known, found = self._allowed(), self.state.repositories.get(name)
        if found is None or (found.private and not known):
            raise Refusal(401 if not known else 404, "Repository not found", "RepoNotFound")
        sha = found.sha(revision)
        if sha is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found, sha

    def _read(self, path: str, _: bytes) -> Any:
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            found, sha = self._repository(match[1], match[2] or "main")
            return {"id": match[1], "modelId": match[1], "sha": sha, "private": found.private}
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?", path):
            found, sha = self._repository(match[1], match[2])
            return [{"type": "file", "path": name, "size": len(x), "oid": hashlib.sha1(x).hexdigest()}
                    for name, x in found.commits[sha].items()]  # fmt: skip
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            found, sha = self._repository(match[1], match[2])
            if match[3] not in found.commits[sha]:
                raise Refusal(404, "Entry not found", "EntryNotFound")
            content = found.commits[sha][match[3]]
            return content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": sha}
        raise Refusal(404, f"the stand-in knows no {path}")

    def _write(self, path: str, body: bytes) -> Any:
        if path == "/api/validate-yaml":
            return _checked(json.loads(body)["content"])
        if not self._allowed():
            raise Refusal(401, "Invalid username or password.")
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            if wanted["organization"] != "org":
                raise Refusal(403, f"You don't have the rights to create a model under {wanted['organization']}")
            if name in self.state.repositories:
                raise Refusal(409, "You already created this model repo", url=f"{self.state.address}/{name}")
            private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
            self.state.repositories[name] = Repository(private)
            return {"url": f"{self.state.address}/{name}"}
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(branch|preupload|commit)/(.+)", path)
        if match is None:
            raise Refusal(404, f"the stand-in knows no {path}")
        name, what, revision = match.groups()
        found, sha = self._repository(name, "main" if what == "branch" else revision)
        if what == "branch":
            if revision in found.branches:
                raise Refusal(409, "Reference already exists")
            found.branches[revision] = sha
            return {}
        if what == "preupload":
            return {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                              for file in json.loads(body)["files"]]}  # fmt: skip
        return self._commit(found, name, revision, body)

    def _commit(self, found: Repository, name: str, revision: str, body: bytes) -> dict[str, Any]:
        files = dict(found.commits[found.branches[revision]])
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] != "header":
                raise Refusal(400, f"the stand-in knows no {line['key']}")
        sha = hashlib.sha1(body).hexdigest()
        found.commits[sha], found.branches[revision] = files, sha
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.state.address}/{name}/commit/{sha}"}


def _checked(card: str) -> dict[str, Any]:
    """What the Hub's checker asks of a model card, the part that a student's has."""
    match = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    facts = yaml.safe_load(match[1]) if match else None
    if not isinstance(facts, dict):
        raise Refusal(400, "the card has no metadata")
    wrong = []
    if facts.get("license") not in LICENCES:
        wrong.append(f'"license" must be one of {", ".join(LICENCES)}')
    for index in facts.get("model-index", []):
        for result in index["results"]:
            if not all((result["task"]["type"], result["dataset"]["type"], result["dataset"]["name"], index["name"])):
                wrong.append('"model-index" lacks a name or a type')
            if not all(one["type"] and isinstance(one["value"], (int, float)) for one in result["metrics"]):
                wrong.append('"model-index" has a metric without type or value')
    for name in ("datasets", "tags", "metrics"):
        if not all(isinstance(one, str) for one in facts.get(name, [])):
            wrong.append(f'"{name}" must be a list of strings')
    if wrong:
        raise Refusal(400, "; ".join(wrong))
    return {"errors": [], "warnings": []}
