"""`--submit`: what is sent, which command the cluster gets, and what comes back from a real Ray with its dashboard."""

import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from openuni.cli.app import command_from_dataclass
from openuni.cli.corpora import ImportFlags, RunFlags
from openuni.cli.submission import as_arguments
from openuni.config.recipe import CorpusRecipe
from openuni.manifests.contracts import discovery
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.errors import OpenUniError
from openuni.pipeline.runners import job_files, job_submission
from openuni.pipeline.runners.job_files import local_modules, pack
from openuni.pipeline.runners.job_submission import Job, follow
from tests.command_line import cli
from tests.raw_clips import write_clips

OPERATOR = '''
"""Says something."""
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple
from openuni.manifests.contracts.operator import Annotator
from . import words

class Result(NamedTuple):
    """What it says."""
    caption: Annotated[str, "a text"]

@dataclass(frozen=True)
class Says(Annotator):
    """Says something."""
    origin = "made for a test"
    def run(self, model: Any, clip: Any) -> Result:
        """The words."""
        from submit_helper import number
        return Result(f"{words.WORD} {number()}")
'''


def parsed(kind: type, arguments: list[str]) -> Any:
    """The flags that a command makes of arguments."""
    found = []
    app = typer.Typer()
    app.command()(command_from_dataclass(kind)(found.append))
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return found[0]


@pytest.mark.parametrize(
    "flags",
    [
        RunFlags(Path("c.toml"), "s3://b/c"),
        RunFlags(
            Path("-odd.toml"),
            "/out dir",
            sources=["/raw/*.mp4", "-x", "s3://b/a b"],
            workers=0,
            gpus=1.5,
            workers_per_gpu=2,
            address="auto",
            placement_timeout=3.0,
            limit=7,
            only=["dis", "encode"],
            add=True,
            retry_failed=True,
            raise_errors=True,
            update_captions=True,
        ),
        ImportFlags("openuni_csv", Path("/sets/a b"), "/out"),
        ImportFlags("x", Path("/s"), "/out", collection="-c", options=["a=1", 'b="x y"'], workers=3, limit=1),
    ],
)
def test_the_cluster_gets_the_same_flags(flags):
    assert parsed(type(flags), as_arguments(flags)) == flags


def folder_of_a_user(folder: Path) -> Path:
    """A recipe with an operator of the user's own, which imports others; and much that has nothing to do with it."""
    package = folder / "submit_lab"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "says.py").write_text(OPERATOR)
    (package / "words.py").write_text("WORD = 'over'\n")
    (package / "unused.py").write_text("")
    (folder / "submit_helper.py").write_text(
        "import submit_deep.er as er\ntry:\n    import submit_old\nexcept SyntaxError:\n    pass\n"
        "def number():\n    return er.SEVEN\n"
    )
    (folder / "submit_old.py").write_text("print 'Python 2'\n")
    (folder / "submit_deep").mkdir()  # a package without __init__.py
    (folder / "submit_deep/er.py").write_text("import os, numpy, openuni\nSEVEN = 7\n")
    for name in ("secret.txt", ".env", "train.py", "openuni.toml"):
        (folder / name).write_text("password")
    recipe = folder / "corpus.toml"
    recipe.write_text('[work]\nshort_side_px = 24\n[filters.luminance]\n[annotators."submit_lab.says"]\n')
    return recipe


@pytest.fixture
def own_operator(tmp_path, monkeypatch) -> Iterator[Path]:
    monkeypatch.setattr(discovery, "_local_roots", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder_of_a_user(tmp_path / "user")
    for name in [name for name in sys.modules if name.startswith("submit_")]:
        del sys.modules[name]


SENT = [
    "submit_deep/er.py",
    "submit_helper.py",
    "submit_lab/__init__.py",
    "submit_lab/says.py",
    "submit_lab/words.py",
    "submit_old.py",
]


def test_only_the_modules_of_the_recipe_are_sent(own_operator, tmp_path, monkeypatch):
    with chdir(own_operator.parent):
        recipe = CorpusRecipe.load(own_operator)
    files = local_modules(recipe.components())
    assert list(files) == SENT
    pack(tmp_path / "sent", files)
    assert sorted(str(path.relative_to(tmp_path / "sent")) for path in (tmp_path / "sent").rglob("*.py")) == SENT
    assert local_modules(CorpusRecipe.parse({"filters": {"luminance": {}}}).components()) == {}
    monkeypatch.setattr(job_files, "MAX_SENT_BYTES", 100)
    with pytest.raises(OpenUniError, match=r"would send .* \(submit_deep/er.py, .*Install the operators as a package"):
        pack(tmp_path / "more", files)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--no-wait"], "--no-wait belongs to --submit ADDRESS"),
        (["--submit", "http://127.0.0.1:9", "--address", "auto"], "leave --address out"),
        (["--submit", ""], "such as http://HOST:8265"),
        (["--submit", "http://127.0.0.1:9"], "cannot submit a job to http://127.0.0.1:9: .*refused"),
        (["--submit", "127.0.0.1:9"], "cannot submit a job to 127.0.0.1:9: .*refused"),
        (["--submit", "ray://127.0.0.1:9"], "cannot submit a job to ray://127.0.0.1:9: .*refused"),
        (["--submit", "http://127.0.0.1:99999"], "cannot submit a job to .*[Pp]ort"),
        (["--submit", "http://no-such-host.invalid:8265"], "cannot submit a job to http://no-such-host.invalid:8265"),
    ],
)
def test_what_cannot_be_submitted_is_told(flags, text, tmp_path):
    (tmp_path / "corpus.toml").write_text("[filters.luminance]\n")
    run = cli("run", tmp_path / "corpus.toml", "/raw", "--out", tmp_path / "out", *flags)
    taken = cli("import", "folder", tmp_path, "--out", tmp_path / "out", *flags)
    for done in (run, taken):
        assert done.returncode == 2 and re.search(text, done.stderr), done.stderr
    assert not (tmp_path / "out").exists()


def test_another_server_is_not_taken_for_a_cluster(tmp_path, s3_free_server):
    (tmp_path / "corpus.toml").write_text("[filters.luminance]\n")
    done = cli("run", tmp_path / "corpus.toml", "/raw", "--out", tmp_path / "out", "--submit", s3_free_server)
    assert done.returncode == 2 and "cannot submit a job" in done.stderr, done.stderr


@pytest.fixture
def s3_free_server(tmp_path) -> Iterator[str]:
    """A web server that knows nothing of Ray."""
    import http.server
    import threading

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_relative_checkpoints_mean_nothing_elsewhere(tmp_path):
    (tmp_path / "corpus.toml").write_text('[annotators.raft]\ncheckpoint = "weights/raft.pth"\n')
    done = cli("run", tmp_path / "corpus.toml", "/r", "--out", tmp_path / "out", "--submit", "http://127.0.0.1:9")
    assert done.returncode == 2 and "raft: checkpoint = 'weights/raft.pth'" in done.stderr


@pytest.fixture
def dashboard(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A cluster with the API for jobs, whose `python` is this one. Of one node: two would share its folder of jobs."""
    from ray._private.utils import get_ray_address_file, write_ray_address
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with chdir(tmp_path_factory.mktemp("ray")):
        arguments = {"num_cpus": 2, "include_dashboard": True, "dashboard_port": 0}
        with socket.socket() as free:  # the usual port of the agent that takes jobs may be another Ray's
            free.bind(("127.0.0.1", 0))
            arguments["dashboard_agent_listen_port"] = free.getsockname()[1]
        cluster = Cluster(initialize_head=True, head_node_args=arguments)
        write_ray_address(cluster.address)  # as `ray start` does: jobs ask for "auto", and others may run here
        yield f"http://{cluster.head_node.webui_url}"
        Path(get_ray_address_file(None)).unlink(missing_ok=True)
        cluster.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_cluster_runs_what_is_submitted(tmp_path, dashboard, own_operator):
    """Also an operator of the user's own; the exit codes of jobs that fail; one that is not waited for."""
    user = own_operator.parent
    write_clips(user / "raw", 4)
    command = ["run", "corpus.toml", "raw", "--out", "out", "--workers", "2", "--submit", dashboard]
    done = cli(*command, cwd=user)
    assert done.returncode == 0, done.stderr + done.stdout
    (job,) = re.findall(r"submitted job (\S+) to ", done.stderr)
    assert f"; sent: corpus.toml, {', '.join(SENT)}\n" in done.stderr
    assert f"ray job stop --address {dashboard} {job}" in done.stderr
    assert "4 clips = 4 ok" in done.stdout and "submit_lab.says: 4/4 done" in done.stdout
    corpus = Corpus.open(str(user / "out"))
    assert {row["submit_lab.says"]["caption"] for row in corpus.table("annotations/submit_lab.says").to_pylist()} == {
        "over 7"
    }

    (user / "raw/broken.mp4").write_bytes(b"no video")
    done = cli(*command, "--add", cwd=user)
    assert done.returncode == 1 and f"{job}" not in done.stderr, done.stderr + done.stdout
    assert "ended with exit code 1" in done.stderr and "5 clips = 4 ok + 0 dropped + 1 failed" in done.stdout
    done = cli("run", "corpus.toml", "nothing/", "--out", "out", "--submit", dashboard, cwd=user)
    assert done.returncode == 2 and "nothing" in done.stdout and "exit code 2" in done.stderr

    done = cli("import", "folder", "raw", "--out", "imported", "--submit", dashboard, "--no-wait", cwd=user)
    assert done.returncode == 0 and "sent: no files" in done.stderr and done.stdout == ""
    (job,) = re.findall(r"submitted job (\S+) to ", done.stderr)
    from ray.job_submission import JobSubmissionClient

    client, deadline = JobSubmissionClient(dashboard), time.monotonic() + 100
    while not client.get_job_status(job).is_terminal():
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert (user / "imported/corpus.json").is_file()
    infos = client.list_jobs()
    sent = [info.runtime_env["working_dir"] for info in infos if "working_dir" in (info.runtime_env or {})]
    assert len(set(sent)) == len(sent) >= 3  # else the end of one would take the files of the next


class Flaky:
    """A client of a cluster whose connection is lost twice while a job runs; Ray's own cannot be made to fail so."""

    def __init__(self, status: str, code: int | None, failures: int = 2) -> None:
        self.failures, self.info = (
            failures,
            SimpleNamespace(status=Status(status), driver_exit_code=code, message="why"),
        )

    async def tail_job_logs(self, job_id: str) -> Any:
        """The log from its beginning, up to where the connection breaks."""
        pieces = ["one\ntw", "o\nthree\n", "four\n"]
        for number, piece in enumerate(pieces):
            if self.failures and number == len(pieces) - self.failures:
                self.failures -= 1
                raise RuntimeError("WebSocket connection closed unexpectedly")
            yield piece

    def get_job_info(self, job_id: str) -> Any:
        return self.info

    def get_address(self) -> str:
        return "http://head:8265"


class Status(str):
    """As Ray's: prints as its name."""

    def is_terminal(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 1, 1), ("FAILED", 2, 2), ("FAILED", -9, 137), ("STOPPED", None, 143)],
)
def test_the_log_goes_on_after_a_lost_connection_and_the_exit_code_is_the_jobs(status, code, expected, monkeypatch):
    monkeypatch.setattr(job_submission, "POLL_S", 0.0)
    shown: list[str] = []
    assert follow(Job(Flaky(status, code), "job"), shown.append) == expected
    assert "".join(shown) == "one\ntwo\nthree\nfour\n"


def test_a_job_that_did_not_start_and_a_cluster_that_is_gone_are_errors(monkeypatch):
    monkeypatch.setattr(job_submission, "POLL_S", 0.0)
    monkeypatch.setattr(job_submission, "LOST_AFTER_S", 0.01)
    with pytest.raises(OpenUniError, match="failed before it started openuni: why"):
        follow(Job(Flaky("FAILED", None, 0), "job"), lambda text: None)
    gone = Flaky("SUCCEEDED", 0)
    gone.get_job_info = None  # type: ignore[assignment,method-assign]
    with pytest.raises(
        OpenUniError, match=r"may still be running; .* ray job logs --follow --address http://head:8265"
    ):
        follow(Job(gone, "job"), lambda text: None)
