"""Submitting a command as a job of a Ray cluster, through Ray Jobs: the cluster runs it, this process shows its log."""

import asyncio
import logging
import os
import shlex
import socket
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from uuid import uuid4

from openuni.manifests.errors import OpenUniError
from openuni.pipeline.failures import format_error
from openuni.pipeline.runners.job_files import pack
from openuni.pipeline.runners.ray_session import CONNECT_TIMEOUT_S

POLL_S = 1.0
START_TIMEOUT_S = 60.0
NO_AGENT = "No available agent to submit job"  # Ray's words for a head node that is not ready yet
LOST_AFTER_S = 120.0  # without an answer of the cluster
STOPPED_CODE = 143  # as of a process that SIGTERM ended
UNIQUE_FILE = ".openuni-job"  # in the folder that is sent
CHATTY_LOGGERS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # which Ray would take instead of the address given


class Job(NamedTuple):
    """A submitted job."""

    client: Any  # Ray's JobSubmissionClient
    job_id: str

    @property
    def stop_command(self) -> str:
        """The command that stops it."""
        return shlex.join(["ray", "job", "stop", "--address", self.client.get_address(), self.job_id])

    @property
    def follow_command(self) -> str:
        """The command that shows its log as it grows."""
        return shlex.join(["ray", "job", "logs", "--follow", "--address", self.client.get_address(), self.job_id])


def submit(address: str, arguments: Sequence[str], files: Mapping[str, Path]) -> Job:
    """Run `openuni ARGUMENTS` on the cluster, in a folder with these files.

    `address`: of the dashboard (http://HOST:8265), or of the cluster as for `ray.init`. Raises `OpenUniError` if the
    cluster does not take it.
    """
    client = _client(address)
    with TemporaryDirectory(prefix="openuni-job-") as folder:
        pack(Path(folder), dict(files))
        environment: dict[str, Any] = {"env_vars": {"PYTHONUNBUFFERED": "1", "RAY_USAGE_STATS_ENABLED": "0"}}
        if files:
            # Ray names a folder by its contents, and deletes it on the cluster when its job ends: another job with the
            # same folder, which Ray would not send again, would lose it
            (Path(folder) / UNIQUE_FILE).write_text(uuid4().hex)
            environment["working_dir"] = folder
        entrypoint = shlex.join(["python", "-m", "openuni", *arguments])
        try:
            job_id = _submitted(client, entrypoint, environment)
        except Exception as error:  # Ray has no class for it
            raise OpenUniError(
                f"the Ray cluster at {address} did not take the job: {format_error(error)}. Its head node needs "
                "ray[default]: pip install 'openuni[cluster]' there."
            ) from error
    return Job(client, str(job_id))


def _submitted(client: Any, entrypoint: str, environment: dict[str, Any]) -> Any:
    """The id of the job. Waits for the agent of a head node that has just started."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            return client.submit_job(entrypoint=entrypoint, runtime_env=environment)
        except RuntimeError as error:
            if NO_AGENT not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)


def follow(job: Job, show: Callable[[str], None]) -> int:
    """Pass on the log of a job until it ends; returns its exit code.

    Raises `OpenUniError` if it could not be started, or if the cluster does not answer any more.
    """
    log = _Log(job, show)
    lost_since: float | None = None
    while True:
        try:
            asyncio.run(log.follow())
            info = job.client.get_job_info(job.job_id)
            lost_since = None
        except Exception as error:  # Ray has no class for it
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > LOST_AFTER_S:
                raise OpenUniError(
                    f"the cluster has not answered for {LOST_AFTER_S:.0f} s: {format_error(error)}. The job "
                    f"{job.job_id} may still be running; see its log with: {job.follow_command}"
                ) from error
            time.sleep(POLL_S)
            continue
        if info.status.is_terminal():
            return _exit_code(job, info)
        time.sleep(POLL_S)


class _Log:
    """The log of a job, shown as it grows. After a lost connection it goes on where it was."""

    def __init__(self, job: Job, show: Callable[[str], None]) -> None:
        self.job, self.show, self.shown = job, show, 0

    async def follow(self) -> None:
        """Show what is new until the job ends."""
        skip = self.shown
        async for text in self.job.client.tail_job_logs(self.job.job_id):  # from its beginning
            left, skip = text[skip:], max(0, skip - len(text))
            if left:
                self.show(left)
                self.shown += len(left)


def _exit_code(job: Job, info: Any) -> int:
    status = str(info.status)
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        return STOPPED_CODE
    code = info.driver_exit_code
    if code is None:
        raise OpenUniError(f"the job {job.job_id} failed before it started openuni: {info.message}")
    return int(code) if code >= 0 else 128 - int(code)  # as a shell reports a signal


def _client(address: str) -> Any:
    """Ray's client. Raises `OpenUniError` if nothing answers at the address."""
    try:
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise OpenUniError(f"--submit needs ray[default] ({error}): pip install 'openuni[cluster]'") from error
    _check_reachable(address)
    for name in CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with _without(ADDRESS_VARIABLES):
            return JobSubmissionClient(address)
    except Exception as error:  # Ray has no class for it
        raise _cannot_submit(address, format_error(error)) from error


def _check_reachable(address: str) -> None:
    """Raise `OpenUniError` if nothing answers there; Ray itself would wait for long."""
    try:
        url = urllib.parse.urlsplit(address if "://" in address else f"//{address}")
        port = url.port or {"https": 443, "http": 80, "ray": 10001}.get(url.scheme)
    except ValueError as error:
        raise _cannot_submit(address, str(error)) from error
    if not url.hostname or not port:
        return  # "auto"
    try:
        with socket.create_connection((url.hostname, port), timeout=CONNECT_TIMEOUT_S):
            pass
    except OSError as error:
        raise _cannot_submit(address, str(error)) from error


def _cannot_submit(address: str, reason: str) -> OpenUniError:
    return OpenUniError(
        f"cannot submit a job to {address}: {reason}. Give the address of the cluster's dashboard, such as "
        "http://HOST:8265; its head node needs ray[default] (pip install 'openuni[cluster]')."
    )


@contextmanager
def _without(variables: Sequence[str]) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in variables if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
