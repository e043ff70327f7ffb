"""A web server on loopback for tests of downloads: files with ETag and Range, and faults on purpose."""

import contextlib
import hashlib
import time
from http.server import BaseHTTPRequestHandler

from loopback import Loopback


class FileServer(Loopback):
    """Serves `files` (path → bytes); `faults` (path → list) are used up, one a GET.

    A fault is a whole number (cut after so many bytes), ("status", code, headers), ("drip", seconds before
    each piece of 4 KiB), or ("no range",) for a server that sends everything whatever was asked for.
    """

    def __init__(self):
        self.files, self.faults, self.seen = {}, {}, []
        self.commit = "0" * 40
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_HEAD(self):
                outer.seen.append(("HEAD", self.path, ""))
                self.answer(body=False)

            def do_GET(self):
                outer.seen.append(("GET", self.path, self.headers.get("Range", "")))
                self.answer(body=True)

            def answer(self, body):
                faults = outer.faults.get(self.path, [])
                fault = faults.pop(0) if body and faults else None
                content = outer.files.get(self.path)
                if isinstance(fault, tuple) and fault[0] == "status":
                    return self.head(fault[1], fault[2])
                if content is None:
                    return self.head(404, {"X-Error-Code": "EntryNotFound"})
                etag = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": outer.commit}
                start = 0
                asked = self.headers.get("Range")
                if asked and fault != ("no range",):
                    start = int(asked.removeprefix("bytes=").partition("-")[0])
                    if start >= len(content):
                        return self.head(416, {"Content-Range": f"bytes */{len(content)}"})
                    etag["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
                rest = content[start:]
                self.head(206 if start else 200, {**etag, "Content-Length": str(len(rest))}, close=False)
                if not body:
                    return None
                with contextlib.suppress(ConnectionError):
                    if isinstance(fault, int):
                        self.wfile.write(rest[:fault])
                        self.close_connection = True
                    elif isinstance(fault, tuple) and fault[0] == "drip":
                        for i in range(0, len(rest), 4096):
                            time.sleep(fault[1])
                            self.wfile.write(rest[i : i + 4096])
                    else:
                        self.wfile.write(rest)

            def head(self, status, headers, close=True):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if close:
                    self.send_header("Content-Length", "0")
                self.end_headers()

        super().__init__(Handler)

    def gets(self, path):
        """The Range of every GET of a path, "" where it had none."""
        return [asked for method, seen, asked in self.seen if method == "GET" and seen == path]
