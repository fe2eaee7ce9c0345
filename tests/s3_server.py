"""An S3 server on a free port of this machine, which this process and those it starts are pointed to."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import fsspec
import pytest
import s3fs
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

Application = Callable[[dict[str, Any], Callable[..., Any]], Any]


class QuietHandler(WSGIRequestHandler):
    """No line per request."""

    def log(self, type: str, message: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def s3_bucket(name: str, between: Callable[[Application], Application] = lambda app: app) -> Iterator[str]:
    """The URL of an empty bucket, of a name that no other test uses: the server keeps buckets for the process.

    `between`: what stands between clients and the server, such as faults.
    """
    app = between(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=QuietHandler)
    Thread(target=server.serve_forever, daemon=True).start()
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)  # else a failure comes with a line for every request
    host, port = server.server_address[:2]
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for key, value in settings.items():
            patch.setenv(key, value)
        s3fs.S3FileSystem.clear_instance_cache()  # instances keep the server that they were made for
        fsspec.filesystem("s3").mkdir(f"s3://{name}")
        yield f"s3://{name}"
        s3fs.S3FileSystem.clear_instance_cache()
    server.shutdown()
