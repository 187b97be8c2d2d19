"""A stand-in for the Hugging Face Hub on the loopback: what huggingface-hub asks of it, over files in memory."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Models by name, each a dictionary of files; and what was asked.

    Attributes:
        token: what requests must bear, if not empty.
        gated: models that need an agreement.
        cut: files whose first answer breaks off in the middle.
        log: (method, path, Range header) of each request.
    """

    models: dict[str, dict[str, bytes]]
    token: str = ""
    gated: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)
    log: list[tuple[str, str, str | None]] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)
    url: str = ""

    def paths(self, method):
        return [p for m, p, _ in self.log if m == method]


class Handler(BaseHTTPRequestHandler):
    """One request to the hub that a subclass names."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def handle_any(self):
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.log.append((self.command, path, self.headers.get("Range")))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        if (
            self.hub.token
            and self.headers.get("Authorization") != f"Bearer {self.hub.token}"
            and "lfs-blob" not in path
        ):
            return self.fail(401, "RepoNotFound")
        if self.command == "PUT":
            self.hub.uploads[path.removeprefix("lfs-blob/")] = body
            return self.answer({})
        if path == "api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.hub.models.setdefault(name, {})
            return self.answer({"url": f"{self.hub.url}/{name}", "name": name})
        if path == "api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        name = next((n for n in self.hub.models if n in path), None)
        if name is None:
            return self.fail(404, "RepoNotFound")
        if name in self.hub.gated:
            return self.fail(403, "GatedRepo")
        before, _, after = path.partition(name)
        return self.model(name, before.strip("/"), after.strip("/"), body)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def model(self, name, before, after, body):
        files, action = self.hub.models[name], after.split("/")[0]
        if action in ("revision", "tree", "resolve") and after.split("/")[1] not in ("main", SHA):
            return self.fail(404, "RevisionNotFound")
        if before == "api/models" and action in ("", "revision"):
            siblings = [{"rfilename": k} for k in files]
            return self.answer({"_id": "0", "id": name, "sha": SHA, "siblings": siblings, "tags": []})
        if action == "tree":
            oid = "0" * 40
            return self.answer(
                [{"type": "file", "oid": oid, "size": len(v), "path": k} for k, v in files.items()]
            )
        if action == "resolve":
            return self.file(name, after.split("/", 2)[2])
        if action == "preupload":
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for f in json.loads(body)["files"]
            ]
            return self.answer({"files": modes})
        if ".git/info/lfs/objects/batch" in after:
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.hub.url}/lfs-blob/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        if action == "commit":
            for line in body.splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
                if row["key"] == "lfsFile":
                    content = self.hub.uploads[row["value"]["oid"]]
                    assert hashlib.sha256(content).hexdigest() == row["value"]["oid"]
                    files[row["value"]["path"]] = content
            return self.answer({"commitUrl": f"{self.hub.url}/{name}/commit/{SHA}", "commitOid": SHA})
        return self.fail(404, "EntryNotFound")

    def file(self, name, file):
        if file not in self.hub.models[name]:
            return self.fail(404, "EntryNotFound")
        content = self.hub.models[name][file]
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        part = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("X-Repo-Commit", SHA)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command != "HEAD":
            if file in self.hub.cut:
                self.hub.cut.discard(file)
                part = part[: len(part) // 2]
                self.close_connection = True
            self.wfile.write(part)

    def answer(self, content):
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def fail(self, status, code):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serving(hub):
    """Serve a hub until the end of the block; its address is `hub.url`."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HandlerOfHub", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
