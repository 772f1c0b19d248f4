"""A local HTTP server that misbehaves in the ways that download servers do."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Misbehaving:
    """What the server has, how it fails, and what it was asked.

    content: the file. etag, modified: what it says of it. ranges: whether it continues downloads. announced: the length
    it claims where that is not the true one. breaks: after how many bytes of an answer it ends the connection, one for
    each answer. statuses: answers before the first good one. after_first: what changes after the first answer.
    careless: continues whatever was asked for by If-Range. held: an event that it waits for before it ends an answer.
    """

    def __init__(self, content, **changes):
        self.content, self.etag, self.modified, self.ranges = content, '"1"', None, True
        self.announced, self.breaks, self.statuses, self.after_first, self.headers = None, [], [], {}, {}
        self.careless, self.held = False, None
        self.asked = []
        self.__dict__.update(changes)


@contextmanager
def serving(files):
    """The base address of a server of `files`: path → Misbehaving."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            file = files.get(self.path)
            if file is None:
                self.send_error(404)
                return
            file.asked.append(dict(self.headers))
            if file.statuses:
                self.send_error(file.statuses.pop(0))
                return
            self._send(file)
            file.__dict__.update(file.after_first)

        def _send(self, file):
            start, asked = 0, self.headers.get("Range")
            same = file.careless or self.headers.get("If-Range") in (None, file.etag, file.modified)
            if asked and file.ranges and same:
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(file.content) > 0:
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = file.content[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(file.content) - 1}/{len(file.content)}")
            self.send_header("Content-Length", str(len(body) if file.announced is None else file.announced - start))
            for name, value in {"ETag": file.etag, "Last-Modified": file.modified, **file.headers}.items():
                if value:
                    self.send_header(name, value)
            self.end_headers()
            end = file.breaks.pop(0) if file.breaks else None
            self.wfile.write(body[:end])
            if file.held:
                self.wfile.flush()
                file.held.wait(60)
            if end is not None or file.announced is not None:
                self.wfile.flush()
                self.close_connection = True

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
