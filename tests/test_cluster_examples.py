"""The files of `examples/cluster`, as far as they can be checked here: syntax, schemas, commands, versions."""

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from openuni.config.recipe import CorpusRecipe
from tests.test_docs import check_parses

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples/cluster"
PAGES = sorted((ROOT / "docs/cluster").glob("*.md"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINNED = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"
)
IMAGE = f"registry.example.com/openuni:{PROJECT['version']}"

# of the Kubernetes types in KubeRay (ray.io/v1)
JOB_FIELDS = {
    *("activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate", "metadata", "clusterSelector"),
    *("submitterConfig", "managedBy", "deletionStrategy", "entrypoint", "runtimeEnvYAML", "jobId", "submissionMode"),
    *("entrypointResources", "entrypointNumCpus", "entrypointNumGpus", "ttlSecondsAfterFinished", "suspend"),
    *("shutdownAfterJobFinishes",),
}
CLUSTER_FIELDS = {
    *("headGroupSpec", "workerGroupSpecs", "rayVersion", "enableInTreeAutoscaling", "autoscalerOptions"),
    *("headServiceAnnotations", "suspend"),
}
GROUP_FIELDS = {
    *("groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "rayStartParams", "template"),
    *("scaleStrategy",),
}


def text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def ray_start_options() -> set[str]:
    from ray.scripts.scripts import start

    return {option.lstrip("-") for parameter in start.params for option in parameter.opts if option.startswith("--")}


def check_ray_start(words: list[str]) -> None:
    """That `ray start` takes these options."""
    given = {word.removeprefix("--").partition("=")[0] for word in words if word.startswith("--")}
    assert given <= ray_start_options(), given - ray_start_options()


def test_the_cluster_of_ray_up_validates_against_rays_own_schema():
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    found = yaml.safe_load(text("ray-cluster.yaml"))
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    assert list(Draft7Validator(schema).iter_errors(found)) == []
    assert [error.message for error in Draft7Validator(schema).iter_errors(found | {"image": "x"})]
    prepared = prepare_config(found)  # with Ray's defaults, as `ray up` does
    validate_config(prepared)
    assert prepared["available_node_types"]["local.cluster.node"]["max_workers"] == 2
    assert found["docker"]["image"] == IMAGE
    for command in (*found["head_start_ray_commands"], *found["worker_start_ray_commands"]):
        words = shlex.split(command)
        assert words[0] == "ray"
        if words[1] == "start":
            check_ray_start(words[2:])
    assert any("--autoscaling-config" in command for command in found["head_start_ray_commands"])


def check_rayjob(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Check a RayJob against KubeRay's fields; returns the containers."""
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert set(spec) <= JOB_FIELDS and set(cluster) <= CLUSTER_FIELDS
    assert cluster["rayVersion"] == PINNED["ray"]
    check_parses(spec["entrypoint"])
    containers = []
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert set(group) <= GROUP_FIELDS and {"rayStartParams", "template"} <= set(group)
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        assert set(group["rayStartParams"]) <= ray_start_options()
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"] == IMAGE
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        assert container["resources"]["limits"] == container["resources"]["requests"]
        containers.append(container | {"volumes": pod["volumes"]})
    return containers


def test_the_rayjob_has_documented_fields_and_a_valid_recipe_and_command():
    config, job = yaml.safe_load_all(text("rayjob.yaml"))
    CorpusRecipe.parse(tomllib.loads(config["data"]["corpus.toml"]))
    for container in check_rayjob(job):
        (recipe,) = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "recipe"]
        assert f"{recipe}/corpus.toml" in job["spec"]["entrypoint"]
        maps = [volume["configMap"]["name"] for volume in container["volumes"] if "configMap" in volume]
        assert maps == [config["metadata"]["name"]]


def test_the_rayjob_of_a_training_has_the_gpus_it_asks_for_and_a_shared_run_folder():
    job = yaml.safe_load(text("train-rayjob.yaml"))
    head, worker = check_rayjob(job)
    words = shlex.split(job["spec"]["entrypoint"])
    given = dict(pairwise(words))
    nodes = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"]
    assert int(given["--workers"]) == nodes * int(worker["resources"]["limits"]["nvidia.com/gpu"])
    assert int(given["--min-workers"]) == (nodes - 1) * int(worker["resources"]["limits"]["nvidia.com/gpu"])
    for container in (head, worker):
        claims = {volume["name"] for volume in container["volumes"] if "persistentVolumeClaim" in volume}
        (shared,) = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] in claims]
        assert given["--out"].startswith(f"{shared}/") and given["--corpus"].startswith(f"{shared}/")


def words_of_srun(name, folder, **variables):
    """What a batch script passes to `srun`, on two nodes. It is bash, and Slurm sees all of its directives."""
    script = text(name)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    directives = re.findall(r"^#SBATCH (--[a-z-]+)(?:=|$)", script, re.MULTILINE)
    assert len(directives) == script.count("#SBATCH") and {"--nodes", "--exclusive"} <= set(directives)
    before_commands = script.partition("\nset -")[0]
    assert before_commands.count("#SBATCH") == len(directives), "Slurm ignores those behind the first command"

    # run it with a `srun` and a `scontrol` that only write down what they are asked
    for command, body in (("srun", 'printf "%s\\n" "$@"'), ("scontrol", "echo node-1; echo node-2")):
        (folder / command).write_text(f"#!/bin/bash\n{body}\n")
        (folder / command).chmod(0o755)
    script = script.replace("source /shared/openuni/.venv/bin/activate", ":")
    environment = {
        "PATH": f"{folder}:/usr/bin:/bin",
        "SLURM_JOB_NODELIST": "node-[1-2]",
        "SLURM_NNODES": "2",
        **variables,
    }
    done = subprocess.run(["bash"], input=script, env=environment, text=True, check=True, capture_output=True)
    return done.stdout.splitlines()


def test_the_slurm_script_is_bash_and_its_commands_are_valid(tmp_path):
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

    words = words_of_srun("openuni.sbatch", tmp_path, SLURM_CPUS_PER_TASK="32")
    start = words.index("ray")
    assert words[:start] == ["--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=32"]
    end = words.index("--")
    assert words[start : start + 6] == ["ray", "symmetric-run", "--address", "node-1:6379", "--min-nodes", "2"]
    assert curate_and_validate_ray_start_args(words[start + 6 : end]) == ["--num-cpus=32", "--num-gpus=0"]
    check_ray_start(words[start + 6 : end])
    check_parses(shlex.join(words[end + 1 :]))


def test_the_slurm_script_of_trainings_is_bash_and_its_commands_are_valid(tmp_path):
    from torch.distributed.run import get_args_parser

    variables = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "64", "SLURM_GPUS_ON_NODE": "8"}
    words = words_of_srun("train.sbatch", tmp_path, **variables)
    start = words.index("torchrun")
    assert words[:start] == ["--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=64"]
    given = get_args_parser().parse_args(words[start + 1 :])
    assert (given.nnodes, given.nproc_per_node, given.rdzv_endpoint) == ("2", "8", "node-1:29400")
    assert given.module and given.training_script == "openuni"
    check_parses(shlex.join([given.training_script, *given.training_script_args]))


def instructions(name: str) -> list[tuple[str, str]]:
    """Instructions of a Dockerfile with their arguments, continued lines joined."""
    joined = re.sub(r"\\\n\s*", " ", text(name))
    return [
        (line.split(maxsplit=1)[0], line.split(maxsplit=1)[1])
        for line in joined.splitlines()
        if line and not line.startswith("#")
    ]


def test_the_dockerfile_copies_what_exists_and_installs_what_is_tested():
    found = instructions("Dockerfile")
    (base,) = [value for name, value in found if name == "FROM"]
    assert re.fullmatch(r"python:3\.(11|12)-slim", base) and PROJECT["requires-python"] == ">=3.11,<3.13"
    copied = [source for name, value in found if name == "COPY" for source in value.split()[:-1]]
    assert all((ROOT / source).exists() for source in copied), copied
    needed = {"pyproject.toml", "constraints.txt", PROJECT["readme"], *PROJECT["license-files"], "src"}
    links = {link.resolve().relative_to(ROOT).parts[0] for link in (ROOT / "openuni").iterdir() if link.is_symlink()}
    assert {*needed, "openuni", *links} <= set(copied), "what the installation reads is in the image"
    (install,) = [value for name, value in found if name == "RUN" and "uv pip install" in value]
    assert "--constraint constraints.txt" in install and "'.[cluster]'" in install
    assert "cluster" in PROJECT["optional-dependencies"]
    for line in re.findall(r"docker build.*", text("Dockerfile")):
        assert f"--tag {IMAGE}" in line and "--file examples/cluster/Dockerfile" in line
    for name, value in found:
        if name == "RUN":
            subprocess.run(["bash", "-n"], input=value, text=True, check=True)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_installation_of_the_dockerfile_is_resolved(tmp_path):
    """Its command in an environment of its own, without downloading what this one has."""
    if not (uv := shutil.which("uv") or shutil.which("uv", path=str(Path(shutil.which("python") or "").parent))):
        pytest.skip("uv is not installed")
    (install,) = [value for name, value in instructions("Dockerfile") if name == "RUN" and "uv pip" in value]
    words = shlex.split(re.search(r"uv pip install[^&]*", install)[0].replace("$backend", ""))  # type: ignore[index]
    subprocess.run([uv, "venv", "--quiet", str(tmp_path / "venv")], check=True)
    words = [word for word in words[1:] if word not in ("--system", "--no-cache")]
    command = [uv, *words, "--dry-run", "--python", str(tmp_path / "venv/bin/python")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("ray", "opencensus", "nvidia-ml-py", "torch"):
        assert f"+ {name}=={PINNED[name]}" in done.stderr, name


def documented(pages: list[Path]) -> str:
    return "\n".join(page.read_text(encoding="utf-8") for page in pages)


def test_the_pages_show_these_files_and_the_metrics_that_exist():
    pages = documented(PAGES)
    for name in ("Dockerfile", "ray-cluster.yaml", "rayjob.yaml", "openuni.sbatch"):
        assert f"{{literalinclude}} ../../examples/cluster/{name}" in pages, name
    source = (ROOT / "openuni/pipeline/runners/metrics.py").read_text()
    kinds = re.findall(r'(Counter|Gauge|Histogram)\(\s*"(openuni_\w+)"', source)
    names = {f"ray_{name}_total" if kind == "Counter" else f"ray_{name}" for kind, name in kinds}
    assert set(re.findall(r"^\| `(ray_openuni_\w+)`", pages, re.MULTILINE)) == names


def everything(value: Any) -> list[str]:
    """All texts in a document."""
    if isinstance(value, dict):
        return [found for one in value.values() for found in everything(one)]
    return [found for one in value for found in everything(one)] if isinstance(value, list) else [str(value)]


def test_no_file_names_another_version_of_the_image():
    for name in ("ray-cluster.yaml", "rayjob.yaml"):
        texts = [found for document in yaml.safe_load_all(text(name)) for found in everything(document)]
        images = {found for found in texts if re.search(r"/openuni:", found)}
        assert images == {IMAGE}
