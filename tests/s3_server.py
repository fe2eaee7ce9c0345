"""An S3 server on a free port of this machine, which this process and those it starts are pointed to."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
import pytest
import s3fs
from moto.server import ThreadedMotoServer


@contextmanager
def s3_bucket(name: str) -> Iterator[str]:
    """The URL of an empty bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a failure comes with a line for every request
    host, port = server.get_host_and_port()
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
    server.stop()
