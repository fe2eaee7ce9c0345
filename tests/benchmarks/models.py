"""What the models cost over the plain transformer they are built on; on a GPU also how much of it they use.

Ratios of CPU time in one thread, the cases of a comparison taken in turns, the least of several rounds. Run by hand.
"""

import argparse
import gc
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import WanTransformer3DModel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from openuni.training.backbone.wan import WanModel
from openuni.training.models.unityvideo import UnityVideo
from openuni.training.models.unividx import UniVidX

NAMES = ("rgb", "albedo", "irradiance", "normal")
# widths of Wan 2.1 1.3B, one block; and a narrow one with more tokens, so that attention weighs what it does there
WIDE = {"heads": 12, "head_dim": 128, "ffn_dim": 8960, "num_layers": 1, "text_dim": 64}
NARROW = {"heads": 3, "head_dim": 128, "ffn_dim": 2240, "num_layers": 1, "text_dim": 64}
WAN_14B_WIDTH, RANK = 5120, 32
TEXT_ROWS, GPU_TEXT_ROWS = 64, 512
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16, as published


class Row(NamedTuple):
    """One line of the table."""

    what: str
    value: float
    goal: float
    note: str = ""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", choices=list(PARTS), action="append")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {given.rounds} rounds")
    for name in given.only or PARTS:
        for row in PARTS[name](given.rounds):
            verdict = "reached" if row.value <= row.goal else "MISSED"
            print(f"{row.what:<74} {row.value:6.3f}  goal {row.goal:5.3f}  {verdict}  {row.note}", flush=True)
    if torch.cuda.is_available():
        for line in utilisation():
            print(line, flush=True)


def in_turns(cases: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Least CPU seconds of each case; one call of each before, uncounted."""
    least = dict.fromkeys(cases, float("inf"))
    for turn in range(rounds + 1):
        for name, case in cases.items():
            gc.collect()
            began = time.process_time()
            case()
            if turn:
                least[name] = min(least[name], time.process_time() - began)
    return least


def inputs(
    model: Any, names: tuple[str, ...], grid: tuple[int, int, int], device: str = "cpu", text_rows: int = TEXT_ROWS
) -> tuple[Any, ...]:
    """One sample of random streams; `grid` in tokens."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, model.channels, *(n * part for n, part in zip(grid, model.patch, strict=True)))
    return (
        {name: torch.randn(shape, generator=generator).to(device) for name in names},
        {name: torch.full((1,), 0.5, device=device) for name in names},
        {name: torch.randn(1, text_rows, model.text_dim, generator=generator).to(device) for name in names},
    )


def step(model: Any, given: tuple[Any, ...]) -> Callable[[], None]:
    """Forward and backward of ours."""

    def run() -> None:  # gradients add up: fresh memory for them each time would be what is measured
        torch.stack([value.float().square().mean() for value in model(*given).values()]).sum().backward()

    return run


def plain_of(component: WanModel) -> Any:
    """diffusers' model of the same size."""
    torch.manual_seed(0)
    return WanTransformer3DModel(**component.base_options()).train()


def plain_step(plain: Any, given: tuple[Any, ...]) -> Callable[[], None]:
    """Forward and backward of diffusers'."""
    stream, sigma, text = (group["rgb"] for group in given)

    def run() -> None:
        plain(stream, sigma * 1000.0, text).sample.square().mean().backward()

    return run


# ---------------------------------------------------------------- one stream over the plain model


def one_stream(rounds: int) -> Iterator[Row]:
    """All weights trained in both; rank so that LoRAs are the share of a block that rank 32 is at 14B."""
    grid = (1, 8, 16)
    rank = round(RANK * WIDE["heads"] * WIDE["head_dim"] / WAN_14B_WIDTH)
    wholes = {
        "unityvideo": UnityVideo(modalities=NAMES, **WIDE).load("cpu"),
        f"unividx, rank {rank}": UniVidX(modalities=NAMES, rank=rank, train_base=True, **WIDE).load("cpu"),
        f"unividx, rank {RANK}": UniVidX(modalities=NAMES, rank=RANK, train_base=True, **WIDE).load("cpu"),
    }
    plain = plain_of(UnityVideo(**WIDE))
    cases = {"plain": plain_step(plain, inputs(wholes["unityvideo"], ("rgb",), grid))}
    cases |= {name: step(model, inputs(model, ("rgb",), grid)) for name, model in wholes.items()}
    took = in_turns(cases, rounds)
    for name in wholes:
        yield Row(f"one stream, all additions, over plain: {name}", took[name] / took["plain"], 1.05)


# ---------------------------------------------------------------- M streams over one


def joint(rounds: int) -> Iterator[Row]:
    """A: attention at one stream's length, timed alone; L: the rest of the one-stream step."""
    grid = (4, 12, 12)
    length, heads, width = 4 * 12 * 12, NARROW["heads"], NARROW["head_dim"]
    qkv = [torch.randn(1, heads, length, width, requires_grad=True) for _ in range(3)]

    def attention() -> None:
        for _ in range(NARROW["num_layers"]):
            scaled_dot_product_attention(*qkv).square().mean().backward()

    for kind in (UnityVideo(modalities=NAMES, **NARROW), UniVidX(modalities=NAMES, rank=8, train_base=True, **NARROW)):
        model = kind.load("cpu")
        cases = {str(m): step(model, inputs(model, NAMES[:m], grid)) for m in (1, 2, 4)}
        took = in_turns(cases | {"attention": attention}, rounds)
        one, quadratic = took["1"], took["attention"]
        for m in (2, 4):
            arithmetic = m * (one - quadratic + m * quadratic) / one
            ratio = took[str(m)] / one
            note = f"{ratio:.2f} times one stream, by arithmetic {arithmetic:.2f}; A is {quadratic / one:.0%} of L + A"
            yield Row(f"{m} streams over one, over the arithmetic: {kind.name()}", ratio / arithmetic, 1.10, note)


# ---------------------------------------------------------------- M LoRAs over one


def loras(rounds: int) -> Iterator[Row]:
    """The same rows with a LoRA each, and with one LoRA for all."""
    models = {
        name: UniVidX(modalities=NAMES, rank=RANK, lora=name, **WIDE).load("cpu") for name in ("shared", "decoupled")
    }
    cases = {name: step(model, inputs(model, NAMES, (1, 4, 8))) for name, model in models.items()}
    took = in_turns(cases, rounds)
    yield Row(f"4 gated LoRAs over one, rank {RANK}: unividx", took["decoupled"] / took["shared"], 1.10)


# ---------------------------------------------------------------- attention over all rows


class Memory(TorchDispatchMode):
    """Counts the bytes of tensors made within it, and the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.most, self.seen = 0, 0, set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        key = storage.data_ptr()
        if not key or key in self.seen:
            return
        self.seen.add(key)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, key, storage.nbytes())

    def _gone(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


def cross_modal(rounds: int) -> Iterator[Row]:
    """Rows seen as one sequence against keys and values repeated for every row, as the released code does."""
    count, length, heads, width = 4, 512, 12, 128
    rows = [torch.randn(count, length, heads, width, requires_grad=True) for _ in range(3)]

    def attend(*heads_of: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(*(x.transpose(1, 2) for x in heads_of)).transpose(1, 2)

    def ours() -> torch.Tensor:
        return attend(*(x.reshape(1, count * length, heads, width) for x in rows)).reshape(rows[0].shape)

    def repeated() -> torch.Tensor:
        query, key, value = rows
        return attend(query, *(x.reshape(1, -1, heads, width).repeat(count, 1, 1, 1) for x in (key, value)))

    torch.testing.assert_close(ours(), repeated(), atol=1e-4, rtol=1e-4)

    def whole(way: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            torch.autograd.grad(way().square().mean(), rows)

        return run

    took = in_turns({"ours": whole(ours), "repeated": whole(repeated)}, rounds)
    yield Row("attention over 4 rows, time over repeated keys and values", took["ours"] / took["repeated"], 1.0)
    extra = {}
    for name, way in (("ours", ours), ("repeated", repeated)):
        with Memory() as memory:
            whole(way)()
        extra[name] = memory.most
    note = f"{extra['ours'] / 1e6:.0f} MB against {extra['repeated'] / 1e6:.0f} MB beside the inputs, with gradients"
    yield Row(
        "attention over 4 rows, memory over repeated keys and values", extra["ours"] / extra["repeated"], 0.5, note
    )


# ---------------------------------------------------------------- loading

LOAD = """
import re, sys
from openuni.training.models.unividx import UniVidX
UniVidX(heads=2, head_dim=12, ffn_dim=32, num_layers=1, text_dim=8, rank=2).load("cpu")
component = UniVidX(pretrained=sys.argv[1], rank=2, frozen_dtype=sys.argv[2])
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
before = peak()
model = component.load("cpu")
print(peak() - before)
"""


def loading(rounds: int) -> Iterator[Row]:
    """Peak resident memory of a fresh process, over the weights in float32."""
    with tempfile.TemporaryDirectory() as temporary:
        plain = WanTransformer3DModel(num_attention_heads=8, attention_head_dim=128, ffn_dim=4096, num_layers=6)
        size = sum(p.numel() * 4 for p in plain.parameters())
        plain.save_pretrained(Path(temporary), max_shard_size="40MB")
        plain.save_pretrained(Path(temporary) / "whole")
        for files, precision, goal in (
            ("", "float32", 1.25),
            ("", "bfloat16", 0.75),
            ("whole", "float32", 1.25),
        ):
            command = [sys.executable, "-c", LOAD, str(Path(temporary) / files), precision]
            peaks = [
                int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
                for _ in range(min(rounds, 2))
            ]
            note = f"{size / 1e6:.0f} MB of weights in {'one file' if files else 'files of 40 MB'}"
            yield Row(
                f"peak memory of loading over the weights in float32, kept in {precision}",
                min(peaks) / size,
                goal,
                note,
            )


# ---------------------------------------------------------------- on a GPU


def flops(component: WanModel, tokens: int, streams: int) -> float:
    """Of a training step of one sample, counted by hand, recomputation left out: three times the forward pass."""
    dim, rows, text = component.heads * component.head_dim, tokens * streams, GPU_TEXT_ROWS * streams
    linear = 2 * rows * (6 * dim * dim + 2 * dim * component.ffn_dim)  # both attentions but for the next; FFN
    linear += 2 * text * 2 * dim * dim  # keys and values of the text
    scores = 4 * rows * rows * dim + 4 * rows * GPU_TEXT_ROWS * dim
    ends = 2 * rows * dim * 2 * 4 * component.channels + 2 * text * dim * (component.text_dim + dim)
    return 3.0 * (component.num_layers * (linear + scores) + ends)


def utilisation(
    device: str = "cuda", grid: tuple[int, int, int] = (9, 30, 52), peak: float = 0.0, **sizes: Any
) -> Iterator[str]:
    """Share of the GPU's peak in training steps of the size of Wan 2.1 1.3B, bfloat16, blocks compiled.

    The goal is 35 %, the aim 45 %.
    """
    if not peak:
        name = torch.cuda.get_device_name()
        peak = next((value for known, value in PEAK_FLOPS.items() if known in name), 0.0)
    if not peak:
        yield f"the peak of {name} is not known here: add it to PEAK_FLOPS"
        return
    options = sizes or {"compile": "inductor", "gradient_checkpointing": True}
    for count in (1, 2):
        component = UnityVideo(modalities=NAMES[:2], rope="per_segment", **options)
        model = component.load(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        run, took = step(model, inputs(model, NAMES[:count], grid, device, GPU_TEXT_ROWS)), []
        for _ in range(8):
            began = time.perf_counter()
            with torch.autocast(device, torch.bfloat16):
                run()
            optimizer.step()
            if device == "cuda":
                torch.cuda.synchronize()
            took.append(time.perf_counter() - began)
        tokens, least = grid[0] * grid[1] * grid[2], min(took[3:])
        share = flops(component, tokens, count) / least / peak
        yield f"unityvideo, 1.3B, {count} streams of {tokens} tokens: {least:.3f} s, {share:.1%} of peak"
        del model, optimizer, run


PARTS: dict[str, Callable[[int], Iterator[Row]]] = {
    "one_stream": one_stream,
    "joint": joint,
    "loras": loras,
    "cross_modal": cross_modal,
    "loading": loading,
}

if __name__ == "__main__":
    main()
