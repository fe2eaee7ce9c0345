"""The page of an evaluation: figures, and the best, median and worst clips side by side."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from openuni.evaluation.evaluation import ClipResult, Comparison, Evaluation, Maps, figure_text
from openuni.manifests.contracts.modality import Modality
from openuni.manifests.contracts.options import recorded
from openuni.manifests.modalities.flow import Flow
from openuni.pages.html import document, section, show, table
from openuni.pages.videos import PageVideo, VideoRow, make_page_video, turbo

PAGE_FILE, RECORD_FILE = "evaluation.html", "evaluation.json"
LABELS = ("segmentation", "densepose")  # whose pixels are names, which are not mixed when a video is enlarged
ARROWS = {"lower": "\N{DOWNWARDS ARROW}", "higher": "\N{UPWARDS ARROW}"}


def evaluation_page(evaluation: Evaluation, title: str, skipped: Sequence[str] = ()) -> str:
    """The HTML file. `title`: what was evaluated. `skipped`: subjects of which no clips are shown."""
    sections = [_section(evaluation, group, skipped) for group in evaluation.groups()]
    arrows = f"{ARROWS['lower']} lower is better, {ARROWS['higher']} higher is better."
    notes = ["Every figure is the mean over clips of its value for each clip.", arrows]
    notes += [evaluation.note] if evaluation.note else []
    header = (
        f"<header><h1>Evaluation of {escape(title)}</h1>"
        f'<p class="soft">Compared with {escape(evaluation.truth)}. {escape(" ".join(notes))}</p></header>'
    )
    return document(f"Evaluation of {Path(title).name}", header, sections)


def _section(evaluation: Evaluation, group: Sequence[Comparison], skipped: Sequence[str]) -> str:
    metric = group[0].metric
    head = ["", "clips", *(f"{figure.name} {ARROWS[figure.better]}" for figure in metric.figures())]
    lines = [
        [
            escape(one.subject),
            f"{len(one.compared):,}",
            *(escape(figure_text(one.mean(figure.name))) for figure in metric.figures()),
        ]
        for one in group
    ]
    meanings = "".join(f"<li><code>{figure.name}</code>: {escape(figure.doc)}</li>" for figure in metric.figures())
    options = ", ".join(f"{name} = {value}" for name, value in recorded(metric).items())
    parts = [table(head, lines), f"<ul>{meanings}</ul>"]
    parts += [f'<p class="note">{escape(options)}</p>'] if options else []
    for one in group:
        if one.subject not in skipped and (rows := _rows(evaluation, one)):
            parts += [f"<h3>{escape(one.subject)}: best, median and worst clip</h3>", *map(show, rows)]
    return section(group[0].modality, *parts)


def _rows(evaluation: Evaluation, comparison: Comparison) -> list[VideoRow]:
    ranked = comparison.ranked()
    if not ranked:
        return []
    places = {"best": 0, "median": len(ranked) // 2, "worst": len(ranked) - 1}
    shown: dict[int, str] = {}
    for name, place in places.items():
        shown[place] = f"{shown[place]}, {name}" if place in shown else name
    return [
        _row(evaluation.look(comparison, ranked[place].clip_id), ranked[place], name) for place, name in shown.items()
    ]


def _row(maps: Maps, result: ClipResult, name: str) -> VideoRow:
    figures = ", ".join(f"{key} {figure_text(value)}" for key, value in result.figures.items())
    videos = [make_page_video("RGB", maps.rgb, maps.fps)]
    videos += [_video(label, map_, maps) for label, map_ in (("true", maps.true), ("predicted", maps.predicted))]
    return VideoRow(videos, f"{name}: {figures}. {maps.clip.caption or ''} ({result.clip_id})")


def _video(label: str, map_: Modality, maps: Maps) -> PageVideo:
    """A rendering: depth in colours, flow with the scale of the true one."""
    if isinstance(map_, Flow) and isinstance(maps.true, Flow):
        scale = maps.true.constants().divisor_px * map_.array.shape[1] / maps.true.array.shape[1]
        map_ = Flow(map_.array, map_.valid, scale)
    rendering = map_.to_rgb()
    frames: np.ndarray = turbo(rendering) if map_.name == "depth" else rendering
    return make_page_video(f"{label} {map_.name}", frames, maps.fps, smooth=map_.name not in LABELS)
