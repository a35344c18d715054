"""A stand-in for the Hugging Face hub on 127.0.0.1: the listing and the files of one dataset repository."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

REPO = "someone/golf"
COMMIT = "c" * 40
CUT_AFTER = 10_000


class HubStandIn(ThreadingHTTPServer):
    """Serves `contents`, path → bytes; files of 1,000 bytes or more are in large-file storage."""

    daemon_threads = True

    def __init__(self, contents: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.contents = contents
        self.served: dict[str, bytes] = {}  # path → bytes sent in place of the listed ones
        self.cuts: dict[str, int] = {}  # path → how many more of its answers break off after CUT_AFTER bytes
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, Range
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def ranges_of(self, name: str) -> list[str | None]:
        """The Range of every GET of the file, None where it asked for all."""
        return [ranged for method, path, ranged in self.requests if method == "GET" and path.endswith(name)]

    def handle_error(self, request, client_address):
        """A client that goes away is part of the tests."""


def checksums(data: bytes) -> tuple[str, str]:
    """SHA-256, and the SHA-1 that git gives a file."""
    return hashlib.sha256(data).hexdigest(), hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubStandIn

    def log_message(self, *arguments):
        """Silent."""

    def do_GET(self):
        self._answer(with_body=True)

    def do_HEAD(self):
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path, self.headers.get("Range")))
        if path.startswith(f"/api/datasets/{REPO}/tree/main"):
            self._send(200, json.dumps(self._tree()).encode(), {"Content-Type": "application/json"})
        elif path.startswith(f"/datasets/{REPO}/resolve/main/"):
            self._send_file(path.split("/resolve/main/")[1], with_body)
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _tree(self) -> list[dict]:
        folders = {name.rsplit("/", 1)[0] for name in self.server.contents}
        tree = [{"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in sorted(folders)]
        for name, data in self.server.contents.items():
            sha256, git_sha1 = checksums(data)
            entry = {"type": "file", "path": name, "size": len(data), "oid": git_sha1}
            if len(data) >= 1000:
                entry["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 130}
            tree.append(entry)
        return tree

    def _send_file(self, name: str, with_body: bool) -> None:
        if name not in self.server.contents:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        listed = self.server.contents[name]
        data = self.server.served.get(name, listed)
        etag = checksums(listed)[len(listed) < 1000]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        status = 200
        if ranged := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            status, start = 206, int(ranged[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data = data[start:]
        cut = with_body and self.server.cuts.get(name, 0) > 0
        if cut:
            self.server.cuts[name] -= 1
        self._send(status, data, headers, with_body, CUT_AFTER if cut else None)

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body=True, cut_after=None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body[:cut_after])
            if cut_after is not None:
                self.close_connection = True
