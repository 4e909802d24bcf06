"""The few endpoints of the Hugging Face Hub that a push and a pull of small files need, kept in memory."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit


class FakeHub:
    """Repositories by id; each is a list of commits, each of them files by path."""

    def __init__(self, url: str = "") -> None:
        self.url = url
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}


@contextmanager
def running() -> Iterator[FakeHub]:
    """A hub on a free port of this machine."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            return

        def do_GET(self) -> None:
            self._answer()

        def do_HEAD(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            if parts == ["api", "repos", "create"]:
                asked = json.loads(body)
                repo = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
                if repo in hub.commits:
                    self._send(409, {"error": "exists", "url": f"{hub.url}/{repo}"})
                    return
                hub.commits[repo] = [{".gitattributes": b"*.safetensors filter=lfs\n", "notes.txt": b"the user's own"}]
                hub.private[repo] = bool(asked.get("private")) or asked.get("visibility") == "private"
                self._send(200, {"url": f"{hub.url}/{repo}", "name": repo})
            elif parts[:1] == ["api"] and "preupload" in parts:
                files = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in json.loads(body)["files"]
                ]
                self._send(200, {"files": files})
            elif parts[:1] == ["api"] and "commit" in parts:
                repo = "/".join(parts[2:4])
                files = dict(hub.commits[repo][-1])
                for line in body.splitlines():
                    item = json.loads(line)
                    if item["key"] == "file":
                        files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
                    elif item["key"] == "deletedFile":
                        del files[item["value"]["path"]]
                hub.commits[repo].append(files)
                sha = _sha(hub, repo)
                self._send(200, {"success": True, "commitOid": sha, "commitUrl": f"{hub.url}/{repo}/commit/{sha}"})
            else:
                self._send(200, {})

        def _answer(self) -> None:
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            repo = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
            if repo not in hub.commits:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            files = hub.commits[repo][-1]
            if parts[0] == "api" and "tree" in parts:
                self._send(200, [{"type": "file", "path": p, "size": len(d), "oid": _oid(d)} for p, d in files.items()])
            elif parts[0] == "api":
                info = {"_id": repo, "id": repo, "modelId": repo, "sha": _sha(hub, repo), "private": hub.private[repo]}
                self._send(200, info | {"tags": [], "siblings": [{"rfilename": path} for path in files]})
            else:
                data = files["/".join(parts[4:])]
                self._send(200, data, {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": _sha(hub, repo)})

        def _send(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for key, text in (headers or {}).items():
                self.send_header(key, text)
            self.send_header(
                "Content-Type", "application/octet-stream" if isinstance(value, bytes) else "application/json"
            )
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _sha(hub: FakeHub, repo: str) -> str:
    return hashlib.sha1(f"{repo} {len(hub.commits[repo])}".encode()).hexdigest()


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
