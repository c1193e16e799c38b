"""A model hub on this machine: as much of it as downloading a snapshot asks for."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def blob(path: str, content: bytes) -> str:
    """What the hub calls a file by: weights are large files."""
    return sha256(content) if path.endswith((".safetensors", ".bin")) else git_hash(content)


@dataclass
class Hub:
    """Repositories by name, each a mapping of paths to contents, and what was asked for."""

    repos: dict[str, dict[str, bytes]]
    cut: dict[str, int] = field(default_factory=dict)  # bytes after which a file's first answer breaks off
    claimed: dict[str, int] = field(
        default_factory=dict
    )  # sizes that are said of files, in place of their own
    held: str | None = None  # a file, or the tree, that is not given before ``release``
    holding: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    given: list[tuple[str, str | None]] = field(default_factory=list)  # file, range
    asked: list[str] = field(default_factory=list)  # paths
    address: str = ""

    def tree(self, repo: str) -> list[dict[str, Any]]:
        rows = []
        for path, content in self.repos[repo].items():
            row: dict[str, Any] = {
                "type": "file",
                "path": path,
                "size": len(content),
                "oid": git_hash(content),
            }
            if blob(path, content) != row["oid"]:
                row["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
            rows.append(row)
        return rows


def serve(hub: Hub) -> ThreadingHTTPServer:  # noqa: C901 - a handler is one class
    """Starts the hub on a free port; ``shutdown`` ends it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            return

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            hub.asked.append(self.path)
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            if parts[:2] == ["api", "models"] and "/".join(parts[2:4]) in hub.repos:
                repo, what = "/".join(parts[2:4]), parts[4] if len(parts) > 4 else ""
                if what == hub.held:
                    hub.release.wait(60)
                self._json(hub.tree(repo) if what == "tree" else {"id": repo, "sha": COMMIT, "siblings": []})
            elif len(parts) > 4 and parts[2] == "resolve" and "/".join(parts[:2]) in hub.repos:
                self._file("/".join(parts[4:]), hub.repos["/".join(parts[:2])], body)
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def _json(self, value: object) -> None:
            content = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _file(self, path: str, files: dict[str, bytes], body: bool) -> None:
            content = files[path]
            wanted = self.headers.get("Range") if body else None
            start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
            if body:
                hub.given.append((path, wanted))
                if path == hub.held:
                    hub.holding.set()
                    hub.release.wait(60)
            self.send_response(206 if start else 200)
            self.send_header("ETag", f'"{blob(path, content)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            if path in hub.claimed:
                self.send_header("X-Linked-Size", str(hub.claimed[path]))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(content) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            if body:
                self._send(path, content[start:])

        def _send(self, path: str, content: bytes) -> None:
            broken_off = hub.cut.pop(path, None)
            try:
                self.wfile.write(content[:broken_off])
            except OSError:
                return  # nobody takes it any more
            if broken_off is not None:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
