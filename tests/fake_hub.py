"""A stand-in for the Hugging Face hub: the endpoints that downloads and uploads of models use."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class FakeHub:
    """Repositories with commits, served on a free port of this machine.

    Attributes:
      commits: Repository -> its commits, oldest first, as (hash, file name -> content).
      asked: "METHOD PATH" of every request.
    """

    def __init__(self):
        self.commits: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub._answer(self)

            do_HEAD = do_POST = do_GET

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, repository: str, files: dict[str, bytes]) -> str:
        """Add a commit with these files, and return its hash."""
        commits = self.commits.setdefault(repository, [])
        commit = hashlib.sha1(f"{repository}{len(commits)}".encode()).hexdigest()
        commits.append((commit, dict(files)))
        return commit

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.asked.append(f"{request.command} {path}")
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        status, headers, content = self._respond(request.command, path, body)
        request.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content)

    def _respond(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        def reply(value, status=200, **headers):
            return (
                status,
                {"Content-Type": "application/json", **headers},
                json.dumps(value).encode(),
            )

        if path == "/api/repos/create":
            given = json.loads(body)
            repository = f"{given['organization']}/{given['name']}"
            self.commits.setdefault(repository, [])
            return reply({"url": f"{self.url}/{repository}"})
        if path == "/api/validate-yaml":
            return reply({"errors": [], "warnings": []})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            return reply({"files": [{"path": name, **modes} for name in files]})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            content = {file["path"]: base64.b64decode(file["content"]) for file in files}
            commit = self.add(match[1], content)
            return reply(
                {"commitUrl": f"{self.url}/{match[1]}/commit/{commit}", "commitOid": commit}
            )
        # A data set has `datasets/` before its name, and the same namespace here.
        path = re.sub(
            r"^/(api/)?datasets/", r"/\1models/" if path.startswith("/api") else "/", path
        )
        pattern = r"/(?:api/models/)?([^/]+/[^/]+?)(?:/(revision|tree|resolve)/([^/]+)(?:/(.+))?)?"
        match = re.fullmatch(pattern, path)
        if match is None or match[1] not in self.commits:
            return reply({}, 404, **{"X-Error-Code": "RepoNotFound"})
        commits = dict(self.commits[match[1]])
        commit = list(commits)[-1] if match[3] in (None, "main") else match[3]
        if commit not in commits:
            return reply({}, 404, **{"X-Error-Code": "RevisionNotFound"})
        files = commits[commit]
        oids = {name: hashlib.sha1(content).hexdigest() for name, content in files.items()}
        if match[2] == "resolve":
            if match[4] not in files:
                return reply({}, 404, **{"X-Error-Code": "EntryNotFound"})
            headers = {"X-Repo-Commit": commit, "ETag": f'"{oids[match[4]]}"'}
            return 200, headers, files[match[4]]
        if match[2] == "tree":
            return reply(
                [
                    {"type": "file", "path": name, "size": len(files[name]), "oid": oid}
                    for name, oid in oids.items()
                ]
            )
        names = [{"rfilename": name} for name in files]
        return reply({"id": match[1], "sha": commit, "siblings": names, "tags": []})
