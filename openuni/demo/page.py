"""The demo's report: one HTML file that contains its videos, images, style and script. It needs no network.

Text from files (captions, names, messages) is escaped. Every number is in a `span` with its path in numbers.json.
"""

from collections.abc import Mapping, Sequence
from html import escape

from openuni.demo import statements
from openuni.demo.charts import ChartLine, line_chart, smoothed
from openuni.demo.statements import Numbers, look_up
from openuni.pages.html import document, section, show, table
from openuni.pages.videos import VideoRow

Rows = Mapping[str, Sequence[VideoRow]]  # by section

TASK_STYLES = ("one", "two", "three")
TASK_LABELS = {
    "rgb->depth": "depth from RGB",
    "depth->rgb": "RGB from depth",
    "text->rgb+depth": "RGB and depth from text",
}
STEP_LABELS = {
    "make clips": "render clips",
    "build the corpus": "build the corpus",
    "train": "train",
    "measure": "evaluate",
}
DEPTH_ROWS = (
    ("estimate", "model", ""),
    ("constant", "best constant map", "baseline: the best single distance per clip, chosen with the ground truth"),
    ("mean_map", "mean depth map of the training clips", "baseline: ignores the input; aligned like the estimate"),
    ("codec", "ground truth after the codec", "limit: the precision of the latents; aligned like the estimate"),
)
FLOW_ROWS = (("dis", "DIS, estimated from RGB"), ("zero", "zero flow (baseline)"))
PACKAGE_LABELS = {"openuni": "OpenUni", "python": "Python"}


def demo_page(numbers: Numbers, rows: Rows, next_steps: Sequence[tuple[str, str]] = ()) -> str:
    """Return the HTML file.

    `numbers`: as in numbers.json. `rows`: rows of videos of "corpus", "flow", "depth" and "joint".
    `next_steps`: purposes and commands.
    """
    sections = [
        *(show(row) for row in rows["corpus"]),
        results_section(numbers),
        corpus(numbers),
        flow(numbers, rows["flow"]),
        training(numbers),
        depth(numbers, rows["depth"]),
        joint(numbers, rows["joint"]),
        next_steps_section(next_steps),
        provenance_section(numbers),
    ]
    return document("OpenUni demo", heading(numbers), sections)


# ---------------------------------------------------------------------- sections


def heading(numbers: Numbers) -> str:
    """Title and introduction."""
    return (
        f"<header><h1>OpenUni demo: from raw clips to a trained model</h1>"
        f'<p class="soft">Report of the {escape(numbers["size"])} demo, {escape(numbers["made"][:10])}: '
        f"<code>{escape(numbers['command'])}</code>. The clips are synthetic, so their ground truth is exact. All "
        "numbers and videos on this page were computed by that command.</p></header>"
    )


def results_section(numbers: Numbers) -> str:
    """The key numbers, and their summary in words."""
    tiles = [
        ("{ledger.ok} of {ledger.clips}", "clips passed all rules"),
        ("{flow.dis.epe_px:.2f} px", "end-point error of DIS optical flow; zero flow {flow.zero.epe_px:.2f} px"),
        (
            "{depth.estimate.abs_rel:.3f}",
            "AbsRel of the model's depth (0 is perfect); best constant {depth.constant.abs_rel:.3f}, "
            "mean map {depth.mean_map.abs_rel:.3f}, codec {depth.codec.abs_rel:.3f}",
        ),
        ("{total_s:.0f} s", "total duration on {machine.cores} CPU cores"),
    ]
    cells = "".join(
        f'<div class="tile"><b>{say(figure, numbers)}</b><span class="label">{say(label, numbers)}</span></div>'
        for figure, label in tiles
    )
    texts = "".join(f"<p>{say(verdict(numbers), numbers)}</p>" for verdict in (statements.ledger, statements.flow))
    texts += f'<p class="verdict {statements.tone(numbers)}">{say(statements.depth(numbers), numbers)}</p>'
    return f'<section class="results"><h2>Results</h2><div class="tiles">{cells}</div>{texts}</section>'


def corpus(numbers: Numbers) -> str:
    """Clip outcomes."""
    record = numbers["ledger"]
    dropped = sum(drop["clips"] for drop in record["dropped"])
    failed = sum(failure["clips"] for failure in record["failed"])
    parts = [f"{record['ok']:,} ok", f"{dropped:,} dropped", f"{failed:,} failed"]
    parts += [f"{record['pending']:,} pending"] if record["pending"] else []
    lines = [
        (f"<code>{escape(drop['rule'])}</code>", "dropped", number(numbers, f"ledger.dropped.{index}.clips", ","))
        for index, drop in enumerate(record["dropped"])
    ]
    lines += [
        (
            escape(f"{failure['operator']}: {failure['reason']}"),
            "failed",
            number(numbers, f"ledger.failed.{index}.clips", ","),
        )
        for index, failure in enumerate(record["failed"])
    ]
    lines.append(("passed all rules, processed by all operators", "ok", number(numbers, "ledger.ok", ",")))
    settings = numbers["settings"]
    sources = (
        f"{settings['solids']} clips with moving solids, {settings['still']} without motion and {settings['dark']} "
        f"that are nearly dark, each of {settings['frames']} frames of {settings['side_px']} x {settings['side_px']} "
        "pixels."
    )
    return section(
        "Corpus",
        f"<p>The sources: {escape(sources)} Filters computed scores for every clip; the keep rule of the recipe "
        f"selected clips by their scores. Every clip has one outcome: <b>{record['clips']:,} clips = "
        f"{' + '.join(parts)}</b>. The videos at the top show a clip with its ground truth. Depth is drawn in turbo "
        "colours: red is near, blue is far.</p>",
        table(("rule or error", "outcome", "clips"), lines, words=2),
    )


def flow(numbers: Numbers, rows: Sequence[VideoRow]) -> str:
    """Estimated and true optical flow."""
    lines = [
        (label, number(numbers, f"flow.{name}.epe_px", ".3f"), number(numbers, f"flow.{name}.outlier_share", ".1%"))
        for name, label in FLOW_ROWS
    ]
    return section(
        "Optical flow",
        f"<p>{say(statements.flow(numbers), numbers)}</p>",
        table(("optical flow", "EPE (px per frame)", "outliers"), lines, ours=0),
        '<p class="note">EPE (end-point error): mean length of the error vector over all pixels that are visible in '
        f"the next frame; mean over {number(numbers, 'flow.clips', '')} clips. Outliers: error above 3 px and 5 %. "
        "Colours: hue is direction, saturation is speed, white is no motion; both videos of a clip use one scale.</p>",
        *(show(row) for row in rows),
    )


def training(numbers: Numbers) -> str:
    """The loss curves."""
    lines, legend = [], []
    for style, (task, curve) in zip(TASK_STYLES, numbers["training"]["curves"].items(), strict=False):
        words = TASK_LABELS.get(task, task)
        lines.append(ChartLine(f"{words}, training", style, smoothed(curve["train"])))
        lines.append(ChartLine(f"{words}, held-out clips", f"{style} held", curve["validation"], dots=True))
        legend.append(f'<li><i class="{style}">&mdash;</i> {escape(words)}</li>')
    legend.append("<li><i>&bull;</i> held-out clips (validation)</li>")
    return section(
        "Training",
        f"<p>{say(statements.training(numbers), numbers)}</p>",
        f'<ul class="legend">{"".join(legend)}</ul>',
        line_chart(lines, "step", "loss per stream"),
        '<p class="note">Flow-matching loss: mean squared error of the predicted velocity, by task and per target '
        "stream. Lines: moving average of the training loss. Dots: validation loss of the EMA weights at fixed noise."
        "</p>",
    )


def depth(numbers: Numbers, rows: Sequence[VideoRow]) -> str:
    """Estimated depth of held-out clips."""
    lines = [
        (
            f'{escape(label)}<br><span class="soft note">{escape(note)}</span>' if note else escape(label),
            number(numbers, f"depth.{name}.abs_rel", ".3f"),
            number(numbers, f"depth.{name}.delta1", ".3f"),
        )
        for name, label, note in DEPTH_ROWS
    ]
    return section(
        "Depth estimation on held-out clips",
        f'<p class="verdict {statements.tone(numbers)}">{say(statements.depth(numbers), numbers)}</p>',
        table(("depth map", "AbsRel (0 is perfect)", "delta1 (1 is perfect)"), lines, ours=0),
        '<p class="note">AbsRel: mean relative error of the distance. delta1: share of pixels that are off by a factor '
        f"below 1.25. Alignment: {escape(numbers['depth']['alignment'])}. Means over "
        f"{number(numbers, 'depth.clips', '')} held-out clips; {number(numbers, 'depth.steps', '')} solver steps. "
        "Colours: red is near, blue is far; the estimate is shown before alignment. Visible squares in the output are "
        "the tokens of the model.</p>",
        *(show(row) for row in rows),
    )


def joint(numbers: Numbers, rows: Sequence[VideoRow]) -> str:
    """RGB and depth from text."""
    return section(
        "RGB and depth generated from a caption",
        "<p>The same model, conditioned only on the text below the videos: captions of held-out clips. "
        f"{say(statements.joint(numbers), numbers)}</p>",
        *(show(row) for row in rows),
    )


def next_steps_section(steps: Sequence[tuple[str, str]]) -> str:
    """Commands to try; empty without any."""
    items = "".join(f"<li>{escape(purpose)}:<br><code>{escape(command)}</code></li>" for purpose, command in steps)
    return section("Next steps", f'<ul class="commands">{items}</ul>') if steps else ""


def provenance_section(numbers: Numbers) -> str:
    """Commands, machine, versions, durations."""
    machine = numbers["machine"]
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    busy = number(numbers, "machine.load_average", ".1f")
    steps = [
        (escape(STEP_LABELS.get(name, name)), number(numbers, f"seconds.{name}", ".1f")) for name in numbers["seconds"]
    ]
    steps.append(("<b>total</b>", f"<b>{number(numbers, 'total_s', '.1f')}</b>"))
    used = ", ".join(f"{PACKAGE_LABELS.get(name, name)} {value}" for name, value in numbers["versions"].items())
    typed = "".join(f"<li><code>{escape(command)}</code></li>" for command in numbers["commands"].values())
    return section(
        "Reproduction",
        "<p>These commands repeat the main steps. The recipes are <code>corpus.toml</code> and <code>train.toml</code> "
        f'in the folder of this page.</p><ul class="commands">{typed}</ul>',
        f"<p>Machine: {escape(machine['processor'])}, {number(numbers, 'machine.cores', '')} cores, "
        f"{number(numbers, 'machine.memory_gb', '.0f')} GB memory, {escape(gpus)}, {escape(machine['system'])}; load "
        f"average at the end {busy}. {escape(numbers['made'])}.</p>",
        f"<p>Versions: {escape(used)}.</p>",
        table(("step", "seconds"), steps),
        '<p class="note">Durations are summed over all invocations in this folder; completed steps are '
        "not repeated. All measurements are in <code>numbers.json</code> in the folder of this page.</p>",
    )


# ---------------------------------------------------------------------- parts


def number(numbers: Numbers, path: str, form: str) -> str:
    """The formatted number at `path`, in a span with the path."""
    return _span(path, format(look_up(numbers, path), form))


def say(text: str, numbers: Numbers) -> str:
    """A sentence of `openuni.demo.statements` as HTML."""
    return statements.fill(escape(text, quote=False), numbers, _span)


def _span(path: str, printed: str) -> str:
    return f'<span data-number="{escape(path)}">{escape(printed)}</span>'
