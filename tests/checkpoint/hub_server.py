"""The few calls of the Hub's interface that a download and an upload of small files make, on 127.0.0.1."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """``repos`` maps "owner/name" to {file: content}; ``requests`` are those made; a ``status`` but 200 refuses."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answer)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        self.private: list[str] = []
        self.status = 200
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def reply(self, status, content=b"", **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(content), "X-Repo-Commit": SHA, **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self):
        parts = self.path.split("?")[0].strip("/").split("/")
        self.server.requests.append(f"{self.command} {self.path}")
        is_api = parts[:2] == ["api", "models"]
        files = self.server.repos.get("/".join(parts[2:4] if is_api else parts[:2]))
        if files is None:
            return self.reply(404, X_Error_Code="RepoNotFound")
        if is_api:
            siblings = [{"rfilename": name} for name in files]
            return self.reply(200, {"id": "/".join(parts[2:4]), "sha": SHA, "siblings": siblings})
        if parts[3] not in ("main", SHA):
            return self.reply(404, X_Error_Code="RevisionNotFound")
        content = files.get("/".join(parts[4:]))
        if content is None:
            return self.reply(404, X_Error_Code="EntryNotFound")
        return self.reply(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"')

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.requests.append(f"POST {self.path}")
        if self.server.status != 200:
            return self.reply(self.server.status, {"error": "no"})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.server.repos:
                return self.reply(409, {"error": "there", "url": f"{self.server.url}/{name}"})
            self.server.repos[name] = {}
            self.server.private += [name] * (asked.get("visibility") == "private" or asked.get("private") is True)
            return self.reply(200, {"url": f"{self.server.url}/{name}"})
        repo = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.reply(200, {"files": files})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.repos[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{self.server.url}/{repo}/commit/{SHA}"
            return self.reply(200, {"commitUrl": url, "commitOid": SHA, "hookOutput": ""})
        return self.reply(200, {})
