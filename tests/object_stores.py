"""Object stores on loopback: moto's S3, an emulator of GCS, and a proxy in front of them that fails on request."""

import contextlib
import http.client
import logging
import socket
import struct
import threading
from dataclasses import dataclass, field
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock
from urllib.parse import urlsplit

from data_pipelines import storage_errors


@dataclass
class Fault:
    """What becomes of the next `times` requests whose line holds `match`: an answer of `status`, or a connection that
    ends after `cut` bytes of the body."""

    match: str
    times: int = 1
    status: int = 0
    cut: int = -1


@dataclass
class Proxy:
    """Stands at `url` in front of a server; `requests` are the lines ("GET /bucket/name range") that came through."""

    url: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def count(self, *words: str) -> int:
        return sum(all(word in line for word in words) for line in self.requests)


@contextlib.contextmanager
def proxy(upstream: str):
    """A proxy in front of the server at `upstream` ("http://host:port")."""
    at = urlsplit(upstream)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def forward(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            line = f"{self.command} {self.path} {self.headers.get('Range', '')}".rstrip()
            with lock:
                made.requests.append(line)
                fault = next((f for f in made.faults if f.times and f.match in line), None)
                if fault:
                    fault.times -= 1
            if fault and fault.status:
                return self.answer(fault.status, [], b"")
            connection = http.client.HTTPConnection(at.hostname, at.port, timeout=60)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("expect", "connection")}
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            data = response.read()
            connection.close()
            self.answer(response.status, response.getheaders(), data, fault.cut if fault else -1)

        def answer(self, status, headers, data, cut=-1):
            self.close_connection = True
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                    self.send_header(name, value)
            length = dict((k.lower(), v) for k, v in headers).get("content-length", str(len(data)))
            self.send_header("Content-Length", length if self.command == "HEAD" else str(len(data)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(data if cut < 0 else data[:cut])
            if cut >= 0:  # a reset, not an orderly end
                self.wfile.flush()
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_PATCH = forward

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_):
            pass

    lock, server = threading.Lock(), Server(("127.0.0.1", 0), Handler)
    made = Proxy(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def fake_s3():
    """The address of an S3 server."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    try:
        yield "http://{}:{}".format(*server.get_host_and_port())
    finally:
        server.stop()


@contextlib.contextmanager
def fake_gcs():
    """The address of a GCS server with the bucket "bucket"."""
    from gcp_storage_emulator import server as emulator

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    with mock.patch.object(emulator, "BytesParser", _Multipart):
        server.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.stop()


class _Multipart(BytesParser):
    """The emulator's parser of uploads, byte for byte as GCS: Python's own takes a file's last "\\r" for a part of the
    line end before the boundary."""

    def parsebytes(self, text, headersonly=False):
        message = super().parsebytes(text, headersonly)
        if message.get_content_type() == "multipart/related":
            boundary = b"\n--" + message.get_boundary().encode()
            content = text.split(boundary)[-2].split(b"\n\n", 1)[1]
            message.get_payload()[1].get_payload = lambda decode: content
        return message


@contextlib.contextmanager
def s3_bucket(server: str, monkeypatch, folder: Path):
    """A proxy in front of an S3 server, and an empty bucket "bucket"; this process's environment leads there, without
    pauses before another try. The cache and temporary files are below `folder`."""
    import boto3
    import fsspec

    environment = {
        "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": str(folder / "no"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "no"), "CSFM_CACHE": str(folder / "cache"),
        "CSFM_RUNS": str(folder / "runs"), "TMPDIR": str(folder / "tmp"), "AWS_ENDPOINT_URL": server,
    }  # fmt: skip
    (folder / "tmp").mkdir()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(storage_errors, "pause", lambda seconds: None)
    bucket = boto3.resource("s3", endpoint_url=server).Bucket("bucket")
    bucket.create()
    with proxy(server) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
        yield made
    bucket.objects.delete()
    bucket.delete()
    fsspec.get_filesystem_class("s3").clear_instance_cache()
