"""A bucket of Google Cloud Storage in this process: as much of its JSON API as checkpoints need,
over HTTP.

tensorstore writes the arrays through its own client. All else goes through gcsfs and
google-cloud-storage where they are installed, and through `FakeFiles` where they are not.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import fsspec


class FakeBucket:
    """What the bucket holds: {name of an object: its bytes}; any name of a bucket will do."""

    def __init__(self):
        self.objects: dict[str, bytes] = {}
        self.generations: dict[str, int] = {}
        self.lock = threading.Lock()

    def write(self, name: str, content: bytes) -> dict:
        with self.lock:
            self.objects[name] = content
            self.generations[name] = self.generations.get(name, 0) + 1
        return self.describe(name)

    def delete(self, name: str) -> bool:
        with self.lock:
            return self.objects.pop(name, None) is not None

    def describe(self, name: str) -> dict:
        return {
            "kind": "storage#object",
            "bucket": "bucket",
            "name": name,
            "size": str(len(self.objects[name])),
            "generation": str(self.generations[name]),
            "metageneration": "1",
            "timeCreated": "2025-01-01T00:00:00.000Z",
            "updated": "2025-01-01T00:00:00.000Z",
        }

    def find(self, prefix: str, delimiter: str | None) -> dict:
        items, prefixes = [], set()
        for name in sorted(self.objects):
            if name.startswith(prefix):
                head, found, _ = (
                    name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
                )
                if found:
                    prefixes.add(prefix + head + delimiter)
                else:
                    items.append(self.describe(name))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}


@contextlib.contextmanager
def serve(bucket: FakeBucket) -> Iterator[str]:
    """Serves a bucket; yields its address."""
    handler = type("Handler", (_Handler,), {"bucket": bucket, "uploads": {}})
    server = _Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A client that hangs up early is no error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: FakeBucket
    uploads: dict[str, str]

    def log_message(self, *_: object) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, code: int, content: bytes | dict = b"", **headers: str) -> None:
        if isinstance(content, dict):
            content = json.dumps(content).encode()
            headers["Content-Type"] = "application/json"
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _ask(self) -> tuple[str, str | None, dict[str, str]]:
        """(path, name of the object, parameters)."""
        parts = urlsplit(self.path)
        found = re.fullmatch(
            r"(?:/download|/upload)?/storage/v1/b/[^/]+/o/([^/]+)(/.*)?", parts.path
        )
        parameters = {name: values[0] for name, values in parse_qs(parts.query).items()}
        return parts.path, found and unquote(found[1]), parameters

    def do_GET(self) -> None:
        path, name, parameters = self._ask()
        if name is None:
            if path.endswith("/o"):
                listed = self.bucket.find(parameters.get("prefix", ""), parameters.get("delimiter"))
                return self._answer(200, listed)
            return self._answer(200, {"kind": "storage#bucket", "name": path.rsplit("/", 1)[1]})
        if name not in self.bucket.objects:
            return self._answer(404, {"error": {"code": 404, "message": "No such object"}})
        if parameters.get("alt") != "media":
            return self._answer(200, self.bucket.describe(name))
        content = self.bucket.objects[name]
        headers = {"x_goog_generation": str(self.bucket.generations[name])}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return self._answer(200, content, **headers)
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        if first > last:
            return self._answer(416)
        headers["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
        self._answer(206, content[first : last + 1], **headers)

    def do_POST(self) -> None:
        path, name, parameters = self._ask()
        body = self._body()
        if path.startswith("/batch"):
            return self._batch(body)
        if copy := re.search(r"/(?:copyTo|rewriteTo)/b/[^/]+/o/([^/]+)$", path):
            copied = self.bucket.write(unquote(copy[1]), self.bucket.objects[name])
            return self._answer(200, {"done": True, "resource": copied} | copied)
        kind = parameters["uploadType"]
        if kind == "put":
            return self._write(self.uploads[parameters["number"]], body, parameters)
        if kind == "resumable":
            number = str(len(self.uploads))
            self.uploads[number] = json.loads(body).get("name") or parameters["name"]
            host = self.headers["Host"]
            return self._answer(200, Location=f"http://{host}{path}?uploadType=put&number={number}")
        if kind == "multipart":
            boundary = re.search(r"boundary=['\"]?([^'\"]+)", self.headers["Content-Type"])[
                1
            ].encode()
            _, about, content, _ = re.split(rb"\r?\n?--" + re.escape(boundary), body)
            about, content = (
                re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in (about, content)
            )
            return self._write(json.loads(about)["name"], content, parameters)
        self._write(parameters["name"], body, parameters)

    do_PUT = do_POST

    def _write(self, name: str, content: bytes, parameters: dict[str, str]) -> None:
        wanted = parameters.get("ifGenerationMatch")
        there = self.bucket.generations.get(name, 0) if name in self.bucket.objects else 0
        if wanted is not None and int(wanted) != there:
            return self._answer(412, {"error": {"code": 412, "message": "conditionNotMet"}})
        self._answer(200, self.bucket.write(name, content))

    def do_DELETE(self) -> None:
        _, name, _ = self._ask()
        self._answer(204 if self.bucket.delete(name) else 404)

    def _batch(self, body: bytes) -> None:
        answers = []
        for found in re.finditer(rb"Content-ID: ([^\r\n]+).*?DELETE (\S+)", body, re.S):
            name = unquote(urlsplit(found[2].decode()).path.rsplit("/o/", 1)[1])
            code = "204 No Content" if self.bucket.delete(name) else "404 Not Found"
            number = re.sub(rb"^<?", b"<response-", found[1].strip()).decode().rstrip(">") + ">"
            head = f"--batch\r\nContent-Type: application/http\r\nContent-ID: {number}\r\n\r\n"
            answers.append(f"{head}HTTP/1.1 {code}\r\n\r\n")
        content = ("".join(answers) + "\r\n--batch--").encode()
        self._answer(200, content, Content_Type="multipart/mixed; boundary=batch")


class FakeFiles(fsspec.AbstractFileSystem):
    """The bucket as a file system, as gcsfs has it: directories are where objects are, and made by
    nobody.
    """

    protocol = ("gs", "gcs")
    cachable = False
    bucket: FakeBucket

    def _name(self, path: str) -> str:
        return self._strip_protocol(path).partition("/")[2]

    def _entry(self, name: str, kind: str, size: int) -> dict[str, Any]:
        return {"name": f"bucket/{name}".rstrip("/"), "type": kind, "size": size}

    def ls(self, path: str, detail: bool = True, **_: object) -> list:
        name = self._name(path)
        found = self.bucket.find(f"{name}/" if name else "", "/")
        entries = [self._entry(item["name"], "file", int(item["size"])) for item in found["items"]]
        entries += [self._entry(prefix, "directory", 0) for prefix in found["prefixes"]]
        if not entries and name in self.bucket.objects:
            entries = [self.info(path)]
        if not entries:
            raise FileNotFoundError(path)
        return entries if detail else [entry["name"] for entry in entries]

    def info(self, path: str, **_: object) -> dict[str, Any]:
        name = self._name(path)
        if name in self.bucket.objects:
            return self._entry(name, "file", len(self.bucket.objects[name]))
        if not name or self.bucket.find(f"{name}/", None)["items"]:
            return self._entry(name, "directory", 0)
        raise FileNotFoundError(path)

    def _open(self, path: str, mode: str = "rb", **_: object) -> io.BytesIO:
        name = self._name(path)
        if "r" in mode:
            if name not in self.bucket.objects:
                raise FileNotFoundError(path)
            return io.BytesIO(self.bucket.objects[name])
        return _Written(self.bucket, name)

    def mkdir(self, path: str, **_: object) -> None:
        """There are none."""

    def makedirs(self, path: str, **_: object) -> None:
        """There are none."""

    def rmdir(self, path: str) -> None:
        """There are none."""

    def rm_file(self, path: str) -> None:
        self.bucket.delete(self._name(path))


class _Written(io.BytesIO):
    def __init__(self, bucket: FakeBucket, name: str):
        super().__init__()
        self._bucket, self._name = bucket, name

    def close(self) -> None:
        if not self.closed:
            self._bucket.write(self._name, self.getvalue())
        super().close()
