"""The real Hub client against a server on this machine: fetched when asked, pinned, and read from the cache after."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

from tests.zoo_builder.test_dataset_sources import PARTS, write_parquet

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SCRIPT = """
import sys, urllib.request
from zoo_builder.datasets import load_dataset
from zoo_builder.errors import DataError
for how, source in zip(sys.argv[2::2], sys.argv[3::2]):
    try:
        found = load_dataset(source, size=32, download=how == "download")
        print(len(found.x_train), len(found.x_test), found.licence, found.sha256)
    except DataError as e:
        print("DataError:", *str(e).split())
    urllib.request.urlopen(sys.argv[1] + "/done")
"""


def etag(contents):
    return hashlib.sha1(contents).hexdigest()


@pytest.fixture
def hub(tmp_path):
    """A repository org/bands of one commit; the paths that were asked for."""
    write_parquet(tmp_path / "repo", PARTS)
    (tmp_path / "repo" / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "repo" / "script.py").write_text("raise SystemExit('a script of the repository was run')")
    files = {p.name: p.read_bytes() for p in (tmp_path / "repo").iterdir()}
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(with_body=False)

        def do_GET(self):
            self.answer(with_body=True)

        def answer(self, with_body):
            path = self.path.partition("?")[0]
            asked.append(path)
            if path == f"/api/datasets/org/bands/revision/{COMMIT}":
                about = {"id": "org/bands", "sha": COMMIT, "siblings": [{"rfilename": n} for n in files]}
                self.send(200, json.dumps(about).encode(), with_body)
            elif path == f"/api/datasets/org/bands/tree/{COMMIT}":
                tree = [{"type": "file", "path": n, "size": len(c), "oid": etag(c)} for n, c in files.items()]
                self.send(200, json.dumps(tree).encode(), with_body)
            elif path.startswith(f"/datasets/org/bands/resolve/{COMMIT}/"):
                contents = files[path.rpartition("/")[2]]
                self.send(200, contents, with_body, {"ETag": f'"{etag(contents)}"', "X-Repo-Commit": COMMIT})
            elif path == "/done":
                self.send(200, b"", with_body)
            else:
                self.send(404, b"", with_body, {"X-Error-Code": "RepoNotFound"})

        def send(self, code, body, with_body, headers=None):
            self.send_response(code)
            for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def load(endpoint, home, *hows_and_sources):
    """In a process of its own, since the client reads its environment once; what it prints of each."""
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", SCRIPT, endpoint, *hows_and_sources]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_dataset_is_fetched_when_asked_at_its_commit_and_kept(hub, tmp_path):
    endpoint, asked = hub
    source = f"hf:org/bands@{COMMIT}"
    absent, fetched = load(endpoint, tmp_path / "home", "local", source, "download", source)
    assert "not in the cache" in absent
    assert asked[0] == "/done"
    assert len(asked) > 2
    assert fetched.startswith(f"{len(PARTS['train'][1])} {len(PARTS['test'][1])} mit ")
    assert not any("script.py" in path for path in asked)
    asked.clear()
    assert load(endpoint, tmp_path / "home", "local", source) == [fetched]
    assert asked == ["/done"]


def test_unknown_dataset_or_commit_is_an_error(hub, tmp_path):
    endpoint, _ = hub
    absent = ("download", f"hf:org/nothing@{COMMIT}", "download", "hf:org/bands@" + "f" * 40)
    assert [told[:11] for told in load(endpoint, tmp_path / "home", *absent)] == ["DataError: "] * 2
