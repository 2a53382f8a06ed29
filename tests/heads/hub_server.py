"""A small server with the few endpoints of the Hub that head sets need, and the log of what it was asked."""

from __future__ import annotations

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" * 6 + "c0ff"


class HubServer(ThreadingHTTPServer):
    """``files`` by repository and name; ``asked`` has method and path of each request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []
        self.created: list[dict[str, object]] = []
        self.messages: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._file(send=False)

    def do_GET(self) -> None:
        self._file(send=True)

    def do_POST(self) -> None:
        self._note()
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.headers.get("Authorization") != "Bearer hf_right":
            self._answer(401, b"{}")
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            name = "/".join(filter(None, (json.loads(body).get("organization"), json.loads(body)["name"])))
            known = name in self.server.files
            self.server.files.setdefault(name, {})
            self._answer(409 if known else 200, json.dumps({"url": f"{self.server.address}/{name}"}).encode())
        elif self.path == "/api/validate-yaml":
            self._answer(200, b'{"errors": [], "warnings": []}')
        elif "/preupload/" in self.path:
            named = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            self._answer(200, json.dumps({"files": named}).encode())
        else:
            repo = self.path.removeprefix("/api/models/").split("/commit/")[0]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "header":
                    self.server.messages.append(line["value"]["summary"])
                else:
                    self.server.files[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            told = {"commitUrl": f"{self.server.address}/{repo}/commit/{COMMIT}", "commitOid": COMMIT, "hookOutput": ""}
            self._answer(200, json.dumps(told).encode())

    def _file(self, *, send: bool) -> None:
        self._note()
        repo, _, rest = self.path.strip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        headers = {"X-Repo-Commit": COMMIT}
        if "/tree/" in self.path:
            self._answer(200, b"[]")
        elif repo not in self.server.files or revision not in ("main", COMMIT):
            wrong = "RepoNotFound" if repo not in self.server.files else "RevisionNotFound"
            self._answer(404, b"", {"X-Error-Code": wrong})
        elif name not in self.server.files[repo]:
            self._answer(404, b"", {**headers, "X-Error-Code": "EntryNotFound"})
        else:
            content = self.server.files[repo][name]
            self._answer(200, content, {**headers, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}, send=send)  # noqa: S324

    def _note(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")

    def _answer(self, code: int, content: bytes, headers: dict[str, str] | None = None, *, send: bool = True) -> None:
        self.send_response(code)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if send and self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass
