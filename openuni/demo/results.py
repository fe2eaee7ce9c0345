"""Measurements of the demo: optical flow compared with ground truth, and the output of the trained model.

Functions return plain numbers (for numbers.json) and rows of videos (for the report).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.corpus_clip import CorpusClip
from openuni.manifests.modalities.depth import Depth
from openuni.manifests.modalities.flow import Flow
from openuni.manifests.modalities.rgb import RGB
from openuni.pages.videos import PageVideo, VideoRow, make_page_video, turbo

if TYPE_CHECKING:
    from openuni.training.run import Run

TRUTH, ESTIMATOR = "supplied", "dis"  # annotators of the demo corpus
ESTIMATE = "rgb->depth"  # the task that is measured
LOSS_WINDOW_SHARE = 0.05  # share of the steps over which a loss is averaged: losses of single steps are noisy
ALIGNMENT = (
    "one scale and one shift per clip, least squares in disparity over all frames and pixels, before AbsRel and delta1"
)


class DemoResults(NamedTuple):
    """Numbers by name, and rows of videos."""

    numbers: dict[str, Any]
    rows: list[VideoRow]


# ---------------------------------------------------------------------- the corpus


def corpus_rows(corpus: Corpus, shown: int) -> DemoResults:
    """Return the maps of the first `shown` kept clips."""
    rows = []
    for clip_id in corpus.kept_clip_ids()[:shown]:
        clip = corpus[clip_id]
        depth, flow, segmentation = (clip.modality(name, TRUTH).to_rgb() for name in ("depth", "flow", "segmentation"))
        fps = clip.clip.fps
        videos = [
            make_page_video("RGB", clip.rgb, fps),
            make_page_video("true depth", turbo(depth), fps),
            make_page_video("true optical flow", flow, fps),
            make_page_video("true segmentation", segmentation, fps, smooth=False),
        ]
        rows.append(VideoRow(videos, clip.caption or ""))
    return DemoResults({}, rows)


def evaluate_flow(corpus: Corpus, shown: int) -> DemoResults:
    """Compare DIS flow, and zero flow as a baseline, with the ground truth for every kept clip.

    End-point error over all pixels with valid ground truth: the mean over clips of the mean per clip. The last frame
    is ignored, because its flow repeats that of the frame before.
    """
    from openuni.training.metrics.flow import flow_errors

    found: list[dict[str, Any]] = []
    rows: list[VideoRow] = []
    for clip_id in corpus.kept_clip_ids():
        clip = corpus[clip_id]
        true, estimated = _flow(clip, TRUTH), _flow(clip, ESTIMATOR)
        truth, valid = true.array[:-1], None if true.valid is None else true.valid[:-1]
        errors = flow_errors(estimated.array[:-1], truth, valid)
        zero = flow_errors(np.zeros_like(truth), truth, valid)
        found.append({"clip_id": clip_id, "dis": errors._asdict(), "zero": zero._asdict()})
        if len(rows) < shown:
            scale = true.constants().divisor_px
            videos = [
                make_page_video("RGB", clip.rgb, clip.clip.fps),
                make_page_video("DIS optical flow", replace(estimated, divisor_px=scale).to_rgb(), clip.clip.fps),
                make_page_video("true optical flow", true.to_rgb(), clip.clip.fps),
            ]
            figures = f"EPE {errors.epe_px:.2f} px, zero flow {zero.epe_px:.2f} px"
            text = f"{clip.caption or ''} ({figures}; full saturation is {scale:.1f} px per frame)"
            rows.append(VideoRow(videos, text))
    numbers = {"clips": len(found)} | {name: _mean([entry[name] for entry in found]) for name in ("dis", "zero")}
    return DemoResults(numbers | {"by_clip": found}, rows)


def _flow(clip: CorpusClip, annotator: str) -> Flow:
    signal = clip.modality("flow", annotator)
    assert isinstance(signal, Flow)
    return signal


# ---------------------------------------------------------------------- the model


def training_numbers(run: "Run", trained: int, held_out: int) -> dict[str, Any]:
    """Return size and length of the training, and the losses per target stream by task: training and validation."""
    curves = {
        str(task): {
            kind: [
                [row["step"], row[name][str(task)] / len(task.targets)]
                for row in run.log
                if str(task) in row.get(name, {})
            ]
            for kind, name in (("train", "task_loss"), ("validation", "validation_loss"))
        }
        for task in run.tasks
    }
    losses = [loss for _, loss in curves[ESTIMATE]["train"]]
    window = max(1, round(len(losses) * LOSS_WINDOW_SHARE))
    validation = curves[ESTIMATE]["validation"]
    return {
        "model": run.record["model"]["name"],
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "steps": run.checkpoint.step,
        "batch_size": run.recipe.optimizer.batch_size,
        "clips": trained,
        "held_out": held_out,
        "estimate_loss_begin": float(np.mean(losses[:window])),
        "estimate_loss_end": float(np.mean(losses[-window:])),
        "estimate_loss_held_out": validation[-1][1] if validation else None,
        "curves": curves,
    }


class DepthEvaluator:
    """Compares the model's depth of held-out clips, and that of three baselines, with the ground truth."""

    def __init__(self, run: "Run", corpus: Corpus, steps: int) -> None:
        self.run, self.corpus, self.steps = run, corpus, steps
        frames, (height_px, width_px) = run.record["latents"]["frames"], run.record["latents"]["size_px"]
        self.size = (frames, height_px, width_px)

    def evaluate(
        self, held_out: Sequence[str], trained: Sequence[str], shown: int, tick: Callable[[], None]
    ) -> DemoResults:
        """Return AbsRel and delta1 of the estimate and of three baselines. `tick` is called after every clip.

        Best constant: the one distance per clip with the lowest AbsRel, chosen with the ground truth. Mean map: mean
        disparity of the training clips per pixel; independent of the input. Codec: the ground truth encoded and
        decoded, about the best that a model on these latents can reach. All but the constant are aligned like the
        estimate.
        """
        from openuni.training.metrics.depth import constant_errors, depth_errors

        mean_map = np.mean([disparity(self.true(self.corpus[clip_id])) for clip_id in trained], axis=0)
        found: list[dict[str, Any]] = []
        rows: list[VideoRow] = []
        for clip_id in held_out:
            clip = self.corpus[clip_id]
            true, rgb = self.true(clip), self.rgb(clip)
            estimated, coded = self.estimate(rgb, clip.caption or ""), self.through_codec(true)
            truth = disparity(true)
            errors = {
                "estimate": depth_errors(disparity(estimated), truth),
                "constant": constant_errors(truth),
                "mean_map": depth_errors(mean_map, truth),
                "codec": depth_errors(disparity(coded), truth),
            }
            found.append({"clip_id": clip_id} | {name: value._asdict() for name, value in errors.items()})
            if len(rows) < shown:
                rows.append(VideoRow(self.videos(clip, rgb, [true, estimated, coded]), _depth_text(clip, found[-1])))
            tick()
        means = {name: _mean([entry[name] for entry in found]) for name in errors}
        gains = [entry["mean_map"]["abs_rel"] - entry["estimate"]["abs_rel"] for entry in found]
        facts = {
            "clips": len(found),
            "better_than_mean_map": sum(gain > 0 for gain in gains),
            "gain": _gain(gains),
            "steps": self.steps,
            "alignment": ALIGNMENT,
        }
        return DemoResults(facts | means | {"by_clip": found}, rows)

    def true(self, clip: CorpusClip) -> Depth:
        """The true depth of a clip, at the size of the latents' videos."""
        signal = clip.modality("depth", TRUTH).take(0, self.size[0]).fit(*self.size[1:])
        assert isinstance(signal, Depth)
        return signal

    def rgb(self, clip: CorpusClip) -> RGB:
        """The frames of a clip, at the size of the latents' videos."""
        return RGB(clip.rgb).take(0, self.size[0]).fit(*self.size[1:])

    def estimate(self, rgb: RGB, caption: str) -> Depth:
        """Estimate depth from RGB and the caption."""
        estimated = self.run.generate(caption, ["depth"], {"rgb": rgb}, self.size, sampling(self.run, self.steps))[
            "depth"
        ]
        assert isinstance(estimated, Depth)
        return estimated

    def through_codec(self, depth: Depth) -> Depth:
        """Encode true depth to latents and decode them."""
        codec, model = self.run.latent_codec
        return Depth.from_rgb(codec.decode(model, codec.encode(model, depth.to_rgb())), depth.constants())

    def videos(self, clip: CorpusClip, rgb: RGB, depths: Sequence[Depth]) -> list[PageVideo]:
        """The condition, the ground truth, the estimate before alignment, and the ground truth after the codec."""
        labels = ("true depth", "estimated depth", "true depth after codec")
        videos = [make_page_video("RGB (condition)", rgb.array, clip.clip.fps)]
        return videos + [
            make_page_video(label, turbo(depth.to_rgb()), clip.clip.fps)
            for label, depth in zip(labels, depths, strict=True)
        ]


def joint_samples(evaluator: DepthEvaluator, held_out: Sequence[str], shown: int, steps: int) -> DemoResults:
    """Generate RGB and depth from captions of held-out clips, and measure the detail of the RGB.

    Detail is the mean difference of adjacent pixels, relative to that of the real clip after the codec.
    """
    rows, shares = [], []
    for number, clip_id in enumerate(held_out[:shown]):
        clip = evaluator.corpus[clip_id]
        options = sampling(evaluator.run, steps, seed=number)
        generated = evaluator.run.generate(clip.caption or "", ["rgb", "depth"], None, evaluator.size, options)
        codec, model = evaluator.run.latent_codec
        real = codec.decode(model, codec.encode(model, evaluator.rgb(clip).to_rgb()))
        rgb = generated["rgb"].to_rgb()
        shares.append(detail(rgb) / max(detail(real), 1e-9))
        videos = [
            make_page_video("generated RGB", rgb, clip.clip.fps),
            make_page_video("generated depth", turbo(generated["depth"].to_rgb()), clip.clip.fps),
        ]
        rows.append(VideoRow(videos, clip.caption or ""))
    return DemoResults({"clips": len(rows), "steps": steps, "detail_share": float(np.mean(shares))}, rows)


def sampling(run: "Run", steps: int, seed: int = 0) -> Any:
    """Sampling options with the shift of the training."""
    from openuni.training.sampler import SamplingOptions

    return SamplingOptions(steps=steps, shift=run.recipe.flow_matching.shift, seed=seed)


def disparity(depth: Depth) -> np.ndarray:
    """Disparity, float [T, H, W, 1]: larger is nearer, for depth in either unit."""
    return 1.0 / depth.array if depth.unit == "metres" else depth.array


def detail(frames: np.ndarray) -> float:
    """Mean absolute difference of adjacent pixels, horizontal plus vertical; frames float [T, H, W, C] in 0..1."""
    across, down = np.abs(np.diff(frames, axis=2)), np.abs(np.diff(frames, axis=1))
    return float(across.mean() + down.mean())


def _gain(gains: Sequence[float]) -> dict[str, float | None]:
    """Mean of paired differences and its standard error, None for a single difference."""
    error = float(np.std(gains, ddof=1) / np.sqrt(len(gains))) if len(gains) > 1 else None
    return {"abs_rel": float(np.mean(gains)), "standard_error": error}


def _mean(entries: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([entry[name] for entry in entries])) for name in entries[0]}


def _depth_text(clip: CorpusClip, errors: dict[str, Any]) -> str:
    rates = ", ".join(
        f"{label} {errors[name]['abs_rel']:.3f}"
        for name, label in (("estimate", "estimate"), ("mean_map", "mean map"), ("codec", "codec"))
    )
    return f"{clip.caption or ''} (AbsRel: {rates})"
