"""The real hub client against a hub of our own on this machine: listing, downloading, resuming, refusing."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SHA = "c0ffee" + "0" * 34
WEIGHTS = bytes(range(256)) * 90_000  # more than two of the pieces that the client writes at a time
REPOSITORY = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": WEIGHTS,
    "tokenizer.json": b"{}",
    "pytorch_model.bin": b"pickle",
    "modeling.py": b"code",
}


class Hub(BaseHTTPRequestHandler):
    """The few addresses that a snapshot download asks for."""

    cut_at = 0  # answer with so many bytes of the weights only, once
    asked: tuple[str, ...] = ()

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        path = self.path.split("?")[0]
        Hub.asked = (*Hub.asked, f"{self.path} {self.headers.get('Range', '')}".strip())
        if path.startswith("/api/models/org/name/revision/"):
            siblings = [{"rfilename": name} for name in REPOSITORY]
            self.say(200, json.dumps({"id": "org/name", "sha": SHA, "siblings": siblings}).encode(), body)
        elif path.startswith("/api/models/org/name/tree/"):
            tree = [
                {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for n, c in REPOSITORY.items()
            ]
            self.say(200, json.dumps(tree).encode(), body)
        elif path.startswith(f"/org/name/resolve/{SHA}/"):
            self.file(REPOSITORY[path.rsplit("/", 1)[1]], body)
        else:
            self.say(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})

    def file(self, content, body):
        digest = hashlib.sha256(content).hexdigest()
        headers = {"ETag": f'"{digest}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range", "")
        if asked and asked != "bytes=0-":
            begin = int(asked.removeprefix("bytes=").split("-")[0])
            rest = content[begin:]
            self.say(206, rest, body, headers | {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"})
        elif body and Hub.cut_at and content is WEIGHTS:
            self.say(200, content[: Hub.cut_at], body, headers, len(content))
            Hub.cut_at = 0
            self.close_connection = True
        else:
            self.say(200, content, body, headers)

    def say(self, status, content, body, headers=None, length=None):
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def fetch(tmp_path):
    """Runs ``fetch`` in a process whose hub is ours (the client reads its address when it is imported)."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Hub.cut_at, Hub.asked = 0, ()
    (tmp_path / "downloads").mkdir()

    def run(name):
        code = (
            "import sys, json\nfrom pathlib import Path\nfrom luthier.core.errors import LuthierError\n"
            "from luthier.models.sources import fetch, parse\nseen = []\n"
            "try:\n  found = fetch(parse(sys.argv[1]), Path(sys.argv[2]), lambda s, d, t: seen.append([d, t]))\n"
            "  print(json.dumps({'path': str(found), 'last': seen[-1]}))\n"
            "except LuthierError as error:\n  print(json.dumps({'error': type(error).__name__, 'said': str(error)}))\n"
        )
        environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        environment |= {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "hf"),
        }
        environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_ETAG_TIMEOUT": "5"}
        command = [sys.executable, "-c", code, name, str(tmp_path / "downloads")]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    yield run
    server.shutdown()
    server.server_close()


def test_a_mirror_is_enough_and_pickles_and_code_are_never_asked_for(fetch):
    found = fetch("hf:org/name@main")
    folder = Path(found["path"])
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert {p.name for p in folder.iterdir() if p.is_file()} == {"config.json", "model.safetensors", "tokenizer.json"}
    assert found["last"] == [found["last"][1]] * 2 and found["last"][1] == len(WEIGHTS) + 25
    assert not any("pytorch_model" in each or "modeling" in each for each in Hub.asked)


def test_a_broken_download_goes_on_where_it_stopped(fetch):
    Hub.cut_at = 22_000_000
    first = fetch("hf:org/name")
    second = fetch("hf:org/name") if "error" in first else first
    assert (Path(second["path"]) / "model.safetensors").read_bytes() == WEIGHTS
    assert any(re.search(r"bytes=[1-9]", each) for each in Hub.asked), "\n".join(Hub.asked)


def test_a_repository_that_the_hub_lacks_is_not_found(fetch):
    found = fetch("hf:org/other")
    assert found["error"] == "NotFoundError" and "hf:org/other" in found["said"]
