"""A Hub on this machine, in memory: what huggingface_hub asks for when it pushes, pulls and lists models.

Written from the client's requests: create, validate-yaml, preupload, LFS batch and put, commit, model info, tree,
resolve (with ETag, Range, and a redirect to another host for LFS files), list. `faults` are what goes wrong.
To try a command on it: python -m tests.hub.server
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_right"


def etag(contents: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(contents) + contents).hexdigest()


def is_lfs(name: str, size: int) -> bool:
    return name.endswith(".safetensors") or size > 10 * 2**20


@dataclass
class Repo:
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # hash -> files, oldest first
    tags: dict[str, str] = field(default_factory=dict)

    def resolve(self, revision: str) -> str | None:
        if revision == "main":
            return next(reversed(self.commits), None)
        revision = self.tags.get(revision, revision)
        return revision if revision in self.commits else None

    def commit(self, files: dict[str, bytes | None]) -> str:
        """`files` are those that change; None is one that is deleted."""
        before = self.commits[self.resolve("main")] if self.commits else {}
        sha = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[sha] = {n: c for n, c in (before | files).items() if c is not None}
        return sha


@dataclass
class Fault:
    """What goes wrong with the next `times` requests of a method whose path holds `path`."""

    method: str
    path: str
    times: int = 1
    status: int = 0  # to answer with; 0: the body breaks off
    headers: dict[str, str] = field(default_factory=dict)
    honest: bool = False  # of a body that breaks off: whether Content-Length is that of the part that is sent


class Hub:
    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}  # LFS, by SHA-256
        self.faults: list[Fault] = []
        self.asked: list[tuple[str, str, dict[str, str]]] = []  # method, path, headers
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.storage = f"http://localhost:{self.server.server_port}/lfs"  # of LFS files; to the client another host
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def paths(self, method: str = "") -> list[str]:
        return [path for m, path, _ in self.asked if method in ("", m)]

    def fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.method == method and fault.path in path and fault.times:
                fault.times -= 1
                return fault
        return None


def _handler(hub: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self) -> None:
            self.body, method = self.read_body(), self.command
            url = urlsplit(self.path)
            path = unquote(url.path)
            hub.asked.append((method, path, {k.lower(): v for k, v in self.headers.items()}))
            self.now = hub.fault(method, path)
            if self.now and self.now.status:
                return self.send(self.now.status, headers=self.now.headers)
            for pattern, does in ROUTES:
                match = re.fullmatch(pattern, f"{method} {path}")
                if match:
                    given = match.groupdict() | {k: v[0] for k, v in parse_qs(url.query).items()}
                    reads = method in ("GET", "HEAD")
                    if "repo" in given and not self.may(given["repo"], write=not reads):
                        return None
                    if "repo" in given and reads:
                        given["revision"] = hub.repos[given["repo"]].resolve(given.get("revision", "main"))
                        if given["revision"] is None:
                            return self.send(404, headers={"X-Error-Code": "RevisionNotFound"})
                    return does(self, **given)
            return self.send(404)

        do_GET = do_HEAD = do_POST = do_PUT = answer

        def read_body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def may(self, name: str, write: bool) -> bool:
            """Whether the request may go on; as the Hub does, a repository that may not be seen is not there."""
            given = self.headers.get("Authorization")
            if given not in (None, f"Bearer {TOKEN}"):
                self.send(401, headers={"X-Error-Message": "Invalid username or password."})
                return False
            repo = hub.repos.get(name)
            if repo is None or (given is None and (repo.private or write)):
                self.send(404 if given else 401, headers={"X-Error-Code": "RepoNotFound"})
                return False
            return True

        def json(self, value: object) -> None:
            self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def send(self, code: int, body: bytes = b"{}", headers: dict[str, str] | None = None) -> None:
            broken = self.now is not None and not self.now.status
            sent = body[: len(body) // 2] if broken else body
            length = len(sent) if broken and self.now.honest else len(body)
            self.send_response(code)
            for key, value in {"Content-Length": str(length), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(sent)
            if broken:
                self.close_connection = True

        def create(self) -> None:
            asked = json.loads(self.body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.send(401, headers={"X-Error-Message": "Invalid username or password."})
            if name in hub.repos:
                return self.send(409, json.dumps({"url": f"{hub.endpoint}/{name}"}).encode())
            hub.repos[name] = Repo(asked.get("private") or asked.get("visibility") == "private")
            hub.repos[name].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
            return self.json({"url": f"{hub.endpoint}/{name}"})

        def validate_yaml(self) -> None:
            self.json({"errors": [], "warnings": []})

        def preupload(self, repo: str, revision: str, **_: str) -> None:
            files = json.loads(self.body)["files"]
            modes = {f["path"]: "lfs" if is_lfs(f["path"], f["size"]) else "regular" for f in files}
            self.json({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})

        def batch(self, repo: str) -> None:
            objects = json.loads(self.body)["objects"]
            for thing in objects:
                if thing["oid"] not in hub.objects:
                    thing["actions"] = {"upload": {"href": f"{hub.storage}/{thing['oid']}"}}
            self.json({"transfer": "basic", "objects": objects})

        def put(self, oid: str) -> None:
            if hashlib.sha256(self.body).hexdigest() != oid:
                return self.send(400)
            hub.objects[oid] = self.body
            return self.send(200)

        def commit(self, repo: str, revision: str, **_: str) -> None:
            files = {}
            for line in map(json.loads, self.body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = hub.objects[value["oid"]]
                elif line["key"] == "deletedFile":
                    files[value["path"]] = None
            sha = hub.repos[repo].commit(files)
            self.json({"success": True, "commitOid": sha, "commitUrl": f"{hub.endpoint}/{repo}/commit/{sha}"})

        def info(self, repo: str, revision: str, **_: str) -> None:
            names = hub.repos[repo].commits[revision]
            self.json({"id": repo, "sha": revision, "siblings": [{"rfilename": n} for n in names]})

        def tree(self, repo: str, revision: str, recursive: str = "false", **_: str) -> None:
            files = hub.repos[repo].commits[revision]
            folders = dict.fromkeys(n.partition("/")[0] for n in files if "/" in n)
            shown = [entry(n, c) for n, c in files.items() if "/" not in n or recursive.lower() == "true"]
            self.json([*shown, *({"type": "directory", "path": n, "oid": etag(n.encode())} for n in folders)])

        def models(self, **query: str) -> None:
            found = [(n, r) for n, r in hub.repos.items() if not r.private]
            self.json([{"id": n, "sha": r.resolve("main"), "tags": [query.get("filter", "")]} for n, r in found])

        def file(self, repo: str, revision: str, name: str) -> None:
            contents = hub.repos[repo].commits[revision].get(name)
            about = {"X-Repo-Commit": revision}
            if contents is None:
                return self.send(404, headers=about | {"X-Error-Code": "EntryNotFound"})
            if not is_lfs(name, len(contents)):
                return self.send(200, contents, about | {"ETag": f'"{etag(contents)}"'})
            oid = hashlib.sha256(contents).hexdigest()
            hub.objects[oid] = contents
            about |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(contents))}
            return self.send(302, b"", about | {"Location": f"{hub.storage}/{oid}"})

        def fetch(self, oid: str) -> None:
            contents = hub.objects[oid]
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if not asked:
                return self.send(200, contents)
            start = int(asked[1])
            where = f"bytes {start}-{len(contents) - 1}/{len(contents)}"
            return self.send(206, contents[start:], {"Content-Range": where})

    model = r"/api/models/(?P<repo>[^/]+/[^/]+)"
    ROUTES = (
        (r"POST /api/repos/create", Handler.create),
        (r"POST /api/validate-yaml", Handler.validate_yaml),
        (rf"POST {model}/preupload/(?P<revision>.+)", Handler.preupload),
        (r"POST /(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", Handler.batch),
        (rf"POST {model}/commit/(?P<revision>.+)", Handler.commit),
        (r"GET /api/models", Handler.models),
        (rf"GET {model}", Handler.info),
        (rf"GET {model}/revision/(?P<revision>.+)", Handler.info),
        (rf"GET {model}/tree/(?P<revision>[^/]+)", Handler.tree),
        (r"(GET|HEAD) /(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)", Handler.file),
        (r"PUT /lfs/(?P<oid>\w+)", Handler.put),
        (r"(GET|HEAD) /lfs/(?P<oid>\w+)", Handler.fetch),
    )
    return Handler


def entry(name: str, contents: bytes) -> dict[str, object]:
    about: dict[str, object] = {"type": "file", "path": name, "size": len(contents), "oid": etag(contents)}
    if is_lfs(name, len(contents)):
        about["lfs"] = {"oid": hashlib.sha256(contents).hexdigest(), "size": len(contents), "pointerSize": 130}
    return about


if __name__ == "__main__":
    print(f"HF_ENDPOINT={Hub().endpoint} HF_TOKEN={TOKEN}", flush=True)
    threading.Event().wait()
