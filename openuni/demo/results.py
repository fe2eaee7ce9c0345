"""What the demo measures and shows: the corpus's flow against the true flow, and what the trained model makes.

Every function returns plain numbers (they go to numbers.json) and rows of films (they go to the page).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from openuni.demo.preview_videos import PageVideo, VideoRow, make_page_video
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.corpus_clip import CorpusClip
from openuni.manifests.modalities.depth import Depth
from openuni.manifests.modalities.flow import Flow
from openuni.manifests.modalities.rgb import RGB

if TYPE_CHECKING:
    from openuni.training.run import Run

TRUTH, ESTIMATOR = "supplied", "dis"  # annotators of the demo's corpus
ESTIMATE = "rgb->depth"  # the task that is measured
LOSS_WINDOW_SHARE = 0.05  # of the steps: losses of single steps are noisy
ALIGNMENT = (
    "one scale and one shift per clip, least squares in disparity over all frames and pixels, before AbsRel and delta1"
)


class DemoResults(NamedTuple):
    """Numbers by name, and rows to look at."""

    numbers: dict[str, Any]
    rows: list[VideoRow]


# ---------------------------------------------------------------------- the corpus


def corpus_rows(corpus: Corpus, shown: int) -> DemoResults:
    """One kept clip after another with everything the corpus holds about it."""
    rows = []
    for clip_id in corpus.kept_clip_ids()[:shown]:
        clip = corpus[clip_id]
        films = [make_page_video("RGB", clip.rgb, clip.clip.fps)]
        for name, label in (("depth", "true depth"), ("flow", "true flow"), ("segmentation", "true segmentation")):
            films.append(make_page_video(label, clip.modality(name, TRUTH).to_rgb(), clip.clip.fps))
        rows.append(VideoRow(films, clip.caption or ""))
    return DemoResults({}, rows)


def evaluate_flow(corpus: Corpus, shown: int) -> DemoResults:
    """DIS flow of every kept clip against the world's true flow, beside the flow that is zero everywhere.

    End-point errors over the pixels whose true motion can be seen, the mean of each clip's mean. The last frame, which
    repeats the one before it, does not count.
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
            films = [
                make_page_video("RGB", clip.rgb, clip.clip.fps),
                make_page_video("DIS flow", replace(estimated, divisor_px=scale).to_rgb(), clip.clip.fps),
                make_page_video("true flow", true.to_rgb(), clip.clip.fps),
            ]
            speeds = f"error {errors.epe_px:.2f} px, zero flow {zero.epe_px:.2f} px"
            rows.append(VideoRow(films, f"{clip.caption or ''} ({speeds}; full colour is {scale:.1f} px per frame)"))
    numbers = {"clips": len(found)} | {name: _mean([entry[name] for entry in found]) for name in ("dis", "zero")}
    return DemoResults(numbers | {"by_clip": found}, rows)


def _flow(clip: CorpusClip, annotator: str) -> Flow:
    signal = clip.modality("flow", annotator)
    assert isinstance(signal, Flow)
    return signal


# ---------------------------------------------------------------------- the model


def held_out_clips(run: "Run", corpus: Corpus) -> tuple[list[str], list[str]]:
    """clip_ids that the run was validated on and never trained on, and those it was trained on."""
    from openuni.training.data.index import open_index

    data = run.recipe.data
    modalities = tuple(run.record["model"]["options"]["modalities"])
    index = open_index(corpus, modalities, data.latents, data.text, data.validation_share)
    pairs = list(zip(index.clip_ids, index.held_out.tolist(), strict=True))
    return [clip for clip, out in pairs if out], [clip for clip, out in pairs if not out]


def training_numbers(run: "Run", trained: int, held_out: int) -> dict[str, Any]:
    """What was trained, and the losses by task, per made stream: of each step, and on held-out clips."""
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
    """Compares depth maps of held-out clips with the truth: the model's, and those that every model must beat."""

    def __init__(self, run: "Run", corpus: Corpus, steps: int) -> None:
        self.run, self.corpus, self.steps = run, corpus, steps
        frames, (height_px, width_px) = run.record["latents"]["frames"], run.record["latents"]["size_px"]
        self.size = (frames, height_px, width_px)

    def evaluate(
        self, held_out: Sequence[str], trained: Sequence[str], shown: int, tick: Callable[[], None]
    ) -> DemoResults:
        """AbsRel and delta1 of the estimate and of three maps that never saw the model; `tick` after every clip.

        best constant: the one distance with the least AbsRel, which knows the truth. Mean map: mean disparity of the
        training clips, pixel by pixel, which never looks at the picture. Codec: the truth encoded and decoded, which
        no model on these latents can beat by much. All but the constant are aligned as the estimate is.
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
        """The clip's true depth, at the latents' size."""
        signal = clip.modality("depth", TRUTH).take(0, self.size[0]).fit(*self.size[1:])
        assert isinstance(signal, Depth)
        return signal

    def rgb(self, clip: CorpusClip) -> RGB:
        """The clip's pixels, at the latents' size."""
        return RGB(clip.rgb).take(0, self.size[0]).fit(*self.size[1:])

    def estimate(self, rgb: RGB, caption: str) -> Depth:
        """The model's depth, from the picture and its caption."""
        made = self.run.generate(caption, ["depth"], {"rgb": rgb}, self.size, sampling(self.run, self.steps))["depth"]
        assert isinstance(made, Depth)
        return made

    def through_codec(self, depth: Depth) -> Depth:
        """The truth encoded to latents and decoded again."""
        codec, model = self.run.latent_codec
        return Depth.from_rgb(codec.decode(model, codec.encode(model, depth.to_rgb())), depth.constants())

    def videos(self, clip: CorpusClip, rgb: RGB, depths: Sequence[Depth]) -> list[PageVideo]:
        """What the model saw, the truth, the estimate as made (not aligned), and the truth through the codec."""
        labels = ("true depth", "estimated depth", "truth through codec")
        films = [make_page_video("RGB (given)", rgb.array, clip.clip.fps)]
        return films + [
            make_page_video(label, depth.to_rgb(), clip.clip.fps) for label, depth in zip(labels, depths, strict=True)
        ]


def joint_samples(judge: DepthEvaluator, held_out: Sequence[str], shown: int, steps: int) -> DemoResults:
    """RGB and depth made together from captions of held-out clips, and how much detail the pictures have.

    Detail is the mean difference of neighbouring pixels, as a share of that of the real clip through the codec.
    """
    rows, shares = [], []
    for number, clip_id in enumerate(held_out[:shown]):
        clip = judge.corpus[clip_id]
        how = sampling(judge.run, steps, seed=number)
        made = judge.run.generate(clip.caption or "", ["rgb", "depth"], None, judge.size, how)
        codec, model = judge.run.latent_codec
        real = codec.decode(model, codec.encode(model, judge.rgb(clip).to_rgb()))
        pictures = made["rgb"].to_rgb()
        shares.append(detail(pictures) / max(detail(real), 1e-9))
        films = [
            make_page_video("generated RGB", pictures, clip.clip.fps),
            make_page_video("generated depth", made["depth"].to_rgb(), clip.clip.fps),
        ]
        rows.append(VideoRow(films, clip.caption or ""))
    return DemoResults({"clips": len(rows), "steps": steps, "detail_share": float(np.mean(shares))}, rows)


def sampling(run: "Run", steps: int, seed: int = 0) -> Any:
    """How to sample: at the training's shift."""
    from openuni.training.sampler import SamplingOptions

    return SamplingOptions(steps=steps, shift=run.recipe.flow.shift, seed=seed)


def disparity(depth: Depth) -> np.ndarray:
    """float [T, H, W, 1], larger is nearer, whatever the unit."""
    return 1.0 / depth.array if depth.unit == "metres" else depth.array


def detail(pictures: np.ndarray) -> float:
    """Mean absolute difference of neighbouring pixels across and down; float [T, H, W, C] in 0..1."""
    across, down = np.abs(np.diff(pictures, axis=2)), np.abs(np.diff(pictures, axis=1))
    return float(across.mean() + down.mean())


def _gain(gains: Sequence[float]) -> dict[str, float | None]:
    """The mean of paired differences, and its standard error: none for a single one."""
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
