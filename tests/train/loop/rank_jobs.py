"""What ranks do in tests: trainings, and what is wrong with them. Run by `rank_processes.py`."""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers.models.transformers.transformer_wan import WanAttention
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from openuni.manifests.errors import OpenUniError
from openuni.training.backbone.attention import WanProcessor
from openuni.training.backbone.context import Context
from openuni.training.loop.ranks import DistributedRanks
from openuni.training.loop.saving import CheckpointSaver
from openuni.training.loop.trainer import Trainer, train
from openuni.training.loop.weights import Ema, Rows
from openuni.training.recipe import CheckpointOptions, TrainingRecipe
from tests.command_line import cli
from tests.full_disk import files_of_at_most
from tests.killed import die_at

RANK = "RANK"


def trainings(jobs: list[dict[str, Any]]) -> list[str]:
    """Train one after another; return how each ended: "", or class and message of the error.

    A job has recipe, corpus, out; and `stop` = [rank, step, signal] where a rank gets a signal, `spoil` = [rank, step]
    where one gets NaN in its average, `divide` where gradients are not added up, `full` = [rank, bytes] where files of
    one cannot be larger.
    """
    torch.set_num_threads(1)
    ended = []
    for job in jobs:
        update = Ema.update
        Ema.update = _disturbed(job, update)  # type: ignore[method-assign]
        begin = Trainer._build
        if "divide" in job:
            Trainer._build = _with_mean  # type: ignore[method-assign]
        rank, limit = job.get("full", (None, 0))
        full = files_of_at_most(limit) if os.environ.get(RANK, "0") == str(rank) else nullcontext()
        try:
            with full:
                train(TrainingRecipe.from_dict(job["recipe"], quiet=True), job["corpus"], job["out"], device="cpu")
            ended.append("")
        except KeyboardInterrupt as stopped:
            ended.append(f"{type(stopped).__name__}: {getattr(stopped, 'number', 2)}")
        except OpenUniError as error:
            ended.append(f"{type(error).__name__}: {error}")
        finally:
            Ema.update, Trainer._build = update, begin  # type: ignore[method-assign]
    return ended


def save_replicas(out: str) -> list[list[str]]:
    """Save tensors that some of four ranks hold, too; return the files by division: over two ranks, and over none."""
    ranks = DistributedRanks()
    meshes = {
        "both": init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "rows")),
        "whole": init_device_mesh("cpu", (4, 1), mesh_dim_names=("replicas", "rows")),
    }
    meshes["one"] = meshes["both"]["rows"]
    whole = torch.arange(15.0).reshape(5, 3)
    for name, mesh in meshes.items():
        placements = [Replicate(), Shard(0)][-mesh.ndim :]
        rows = distribute_tensor(whole, mesh, placements)
        state = Rows(rows.to_local()[:, :1].bfloat16(), rows)  # as optimizer state of another dtype and width
        tensors = {"rows": rows, "state": state, "step": torch.tensor(7.0)}
        saver = CheckpointSaver(ranks, Path(out) / name, CheckpointOptions())
        saver.save(1, {"model": tensors, "ema": tensors, "optimizer": tensors}, {})
        saver.finish()
    ranks.close()
    return [sorted(path.name for path in (Path(out) / name / "step-000001").glob("model*")) for name in meshes]


def commands(lines: list[list[str]]) -> list[tuple[int, str, str]]:
    """Run commands of the command line; return exit code, stdout and stderr of each."""
    torch.set_num_threads(1)
    return [tuple(cli(*line)) for line in lines]


def killed_while_saving(rank: int, number: int, delay_s: float | None, job: dict[str, Any]) -> list[str]:
    """As `trainings`, but one rank dies before its `number`-th change of a checkpoint, or `delay_s` after it."""
    if os.environ.get(RANK, "0") == str(rank):
        die_at(number, lambda path: "/.step-" in path or "/step-" in path, delay_s)
    return trainings([job])


def killed(number: int, job: dict[str, Any]) -> list[str]:
    """As `trainings`, but rank 0 dies before the `number`-th change of its checkpoint of step 2."""
    if os.environ[RANK] == "0":
        die_at(number, lambda path: "step-000002" in path)
    return trainings([job])


def attention_on_parts(count: int, heads: int) -> dict[str, float]:
    """Attention of `count` tokens divided among the ranks: largest differences from all of them on one, own tokens."""
    dist.init_process_group("gloo")
    context = Context.of(dist.group.WORLD)
    torch.manual_seed(0)
    layer = WanAttention(dim=6 * heads, heads=heads, dim_head=6, processor=WanProcessor())
    tokens, target = torch.randn(2, count, 6 * heads), torch.randn(2, count, 6 * heads)
    tables = torch.randn(1, count, 1, 6), torch.randn(1, count, 1, 6)
    expected = layer(tokens, rotary_emb=tables)
    (expected * target).sum().backward()
    wanted = {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}
    layer.zero_grad()
    layer.processor.context = context
    own = [context.part(table) for table in tables]
    mixed = layer(context.part(tokens), rotary_emb=(*own, context.lengths(count)))
    found = context.whole(mixed, count)
    (found * target).sum().backward()
    for parameter in layer.parameters():
        dist.all_reduce(parameter.grad)
    off = [(p.grad - wanted[name]).abs().max() / wanted[name].abs().max() for name, p in layer.named_parameters()]
    dist.destroy_process_group()
    return {"output": float((found - expected).abs().max()), "gradients": float(max(off)), "tokens": mixed.shape[1]}


def _disturbed(job: dict[str, Any], update: Any) -> Any:
    steps = 0
    rank = int(os.environ.get(RANK, "0"))

    def disturbed(self: Ema, decay: float) -> None:
        nonlocal steps
        update(self, decay)
        steps += 1
        if "stop" in job and [rank, steps] == job["stop"][:2]:
            os.kill(os.getpid(), job["stop"][2])
        if job.get("spoil") == [rank, steps]:
            next(tensor for tensor in self.average.values() if tensor.numel()).view(-1)[0] = torch.nan

    return disturbed


_build = Trainer._build


def _with_mean(self: Trainer) -> Any:
    weights = _build(self)
    weights.model.set_gradient_divide_factor(2.0)
    return weights
