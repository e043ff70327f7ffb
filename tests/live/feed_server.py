"""A web server on loopback that behaves as its test says: feeds, faults, redirects, and a webhook."""

from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from xml.sax.saxutils import escape

from loopback import Loopback


@dataclass
class Reply:
    """What is sent; `body` may be an iterator of pieces, sent without a length until it ends."""

    body: object = b""
    status: int = 200
    headers: dict = field(default_factory=dict)


class Server(Loopback):
    """`routes`: path → a Reply, or a function of the request (method, path, headers, body) that makes one."""

    def __init__(self):
        self.routes, self.seen = {}, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                request = (self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
                outer.seen.append(request)
                reply = outer.routes.get(self.path, Reply(status=404))
                reply = reply(*request) if callable(reply) else reply
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                whole = isinstance(reply.body, bytes)
                if whole and "Content-Length" not in reply.headers:
                    self.send_header("Content-Length", str(len(reply.body)))
                if not whole or "Content-Length" in reply.headers:
                    self.send_header("Connection", "close")
                    self.close_connection = True
                self.end_headers()
                try:
                    for piece in [reply.body] if whole else reply.body:
                        self.wfile.write(piece)
                        self.wfile.flush()
                except OSError:
                    pass

            do_POST = do_GET

        super().__init__(Handler)
        self.server.handle_error = lambda *_: None  # clients that leave early are part of the tests


def rss(*titles, extra="", date="Mon, 02 Mar 2026 15:00:00 GMT"):
    """An RSS feed with an item for each title; its guid is the title."""
    items = "".join(
        f"<item><title>{escape(title)}</title><guid isPermaLink='false'>{escape(title)}</guid>"
        f"<link>https://news.example/{i}</link><pubDate>{date}</pubDate></item>"
        for i, title in enumerate(titles)
    )
    return (
        f"<?xml version='1.0'?><rss version='2.0'><channel><title>Wire</title>{extra}{items}</channel></rss>"
    ).encode()
