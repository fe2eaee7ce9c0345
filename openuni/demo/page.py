"""The demo's page: one HTML file with its videos, pictures, style and script inside. It needs no network.

Whatever comes from files (captions, names, messages) is escaped. Each number stands in a `span` that names its place
in numbers.json.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape

from openuni.demo import statements
from openuni.demo.charts import ChartLine, line_chart, smoothed
from openuni.demo.page_style import SCRIPT, STYLE
from openuni.demo.preview_videos import PageVideo, VideoRow
from openuni.demo.statements import Numbers, look_up

Rows = Mapping[str, Sequence[VideoRow]]  # by section

TASK_STYLES = ("one", "two", "three")
TASK_LABELS = {
    "rgb->depth": "depth from RGB",
    "depth->rgb": "RGB from depth",
    "text->rgb+depth": "RGB and depth from text",
}
DEPTH_ROWS = (
    ("estimate", "the model's estimate", ""),
    ("constant", "best constant map", "one distance per clip, the best there is; it knows the truth"),
    ("mean_map", "mean map of the training clips", "aligned like the estimate; never looks at the picture"),
    ("codec", "the truth through the codec", "aligned like the estimate; what the latents can hold"),
)
FLOW_ROWS = (("dis", "DIS, estimated from the pixels"), ("zero", "zero everywhere"))
PACKAGE_LABELS = {"openuni": "OpenUni", "python": "Python"}


def demo_page(numbers: Numbers, rows: Rows) -> str:
    """The whole file. `numbers`: as in numbers.json. `rows`: films of "corpus", "flow", "depth" and "joint"."""
    sections = [
        results_section(numbers),
        corpus(numbers, rows["corpus"]),
        flow(numbers, rows["flow"]),
        training(numbers),
        depth(numbers, rows["depth"]),
        joint(numbers, rows["joint"]),
        provenance_section(numbers),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'  # else a browser asks the network for one
        f"<title>OpenUni demo</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{heading(numbers)}\n<main>\n"
        + "\n".join(sections)
        + f"\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


# ---------------------------------------------------------------------- sections


def heading(numbers: Numbers) -> str:
    """Title, and what this page is."""
    return (
        f"<header><h1>OpenUni: raw clips to a corpus to a trained model</h1>"
        f'<p class="soft">The {escape(numbers["size"])} demo, made on {escape(numbers["made"][:10])} with '
        f"<code>{escape(numbers['command'])}</code>. Every number and picture on this page was computed by that "
        "command; the clips are rendered, so their ground truth is known exactly.</p></header>"
    )


def results_section(numbers: Numbers) -> str:
    """The key numbers, and what they say in words."""
    tiles = [
        ("{ledger.ok} of {ledger.clips}", "clips kept by the recipe's rules"),
        ("{flow.dis.epe_px:.2f} px", "DIS flow error; zero flow {flow.zero.epe_px:.2f} px"),
        (
            "{depth.estimate.abs_rel:.3f}",
            "AbsRel of estimated depth; best constant {depth.constant.abs_rel:.3f}, "
            "mean map {depth.mean_map.abs_rel:.3f}, codec {depth.codec.abs_rel:.3f}",
        ),
        ("{total_s:.0f} s", "for everything, on {machine.cores} CPU cores"),
    ]
    cells = "".join(
        f'<div class="tile"><b>{say(figure, numbers)}</b><span class="label">{say(label, numbers)}</span></div>'
        for figure, label in tiles
    )
    texts = "".join(f"<p>{say(verdict(numbers), numbers)}</p>" for verdict in (statements.ledger, statements.flow))
    texts += f'<p class="verdict {statements.tone(numbers)}">{say(statements.depth(numbers), numbers)}</p>'
    return f'<section class="happened"><h2>What happened</h2>{texts}<div class="tiles">{cells}</div></section>'


def corpus(numbers: Numbers, rows: Sequence[VideoRow]) -> str:
    """The ledger, and what the corpus holds about a clip."""
    record = numbers["ledger"]
    dropped = sum(drop["clips"] for drop in record["dropped"])
    failed = sum(failure["clips"] for failure in record["failed"])
    parts = [f"{record['ok']:,} ok", f"{dropped:,} dropped", f"{failed:,} failed"]
    parts += [f"{record['pending']:,} not done yet"] if record["pending"] else []
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
    lines.append(("passed every rule, done by every annotator", "ok", number(numbers, "ledger.ok", ",")))
    settings = numbers["settings"]
    given = (
        f"{settings['solids']} clips with moving solids, {settings['still']} in which nothing moves and "
        f"{settings['dark']} in near darkness; {settings['frames']} frames of {settings['side_px']} x "
        f"{settings['side_px']} pixels each."
    )
    return section(
        "The corpus",
        f"<p>{escape(given)} Filters scored every clip; the recipe's <code>keep</code> decided. Each clip is accounted "
        f"for once: <b>{record['clips']:,} clips = {' + '.join(parts)}</b>.</p>",
        table(("Rule or reason", "became", "clips"), lines, words=2),
        *(show(row) for row in rows),
    )


def flow(numbers: Numbers, rows: Sequence[VideoRow]) -> str:
    """Estimated against true flow."""
    lines = [
        (label, number(numbers, f"flow.{name}.epe_px", ".3f"), number(numbers, f"flow.{name}.outlier_share", ".1%"))
        for name, label in FLOW_ROWS
    ]
    return section(
        "Optical flow against the truth",
        f"<p>{say(statements.flow(numbers), numbers)}</p>",
        table(("", "EPE, px per frame", "outliers"), lines, ours=0),
        '<p class="note">EPE: mean length of the error over all pixels that can still be seen in the next frame; mean '
        f"over {number(numbers, 'flow.clips', '')} clips. Outliers are off by more than 3 px and 5 %. Hue is "
        "direction, white is at rest; both flows of a clip are painted on one scale.</p>",
        *(show(row) for row in rows),
    )


def training(numbers: Numbers) -> str:
    """The loss curve."""
    lines, legend = [], []
    for style, (task, curve) in zip(TASK_STYLES, numbers["training"]["curves"].items(), strict=False):
        words = TASK_LABELS.get(task, task)
        lines.append(ChartLine(f"{words}, training", style, smoothed(curve["train"])))
        lines.append(ChartLine(f"{words}, held-out clips", f"{style} held", curve["validation"], dots=True))
        legend.append(f'<li><i class="{style}">&mdash;</i> {escape(words)}</li>')
    legend.append("<li><i>&bull;</i> the same on held-out clips</li>")
    return section(
        "Training",
        f"<p>{say(statements.training(numbers), numbers)}</p>",
        f'<ul class="legend">{"".join(legend)}</ul>',
        line_chart(lines, "step", "loss per stream"),
        '<p class="note">Mean squared error of the predicted velocity (flow matching), by task and per generated '
        "stream. Training lines are moving averages; the dots are the averaged weights at fixed noise.</p>",
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
        "Depth of clips the model never saw",
        f'<p class="verdict {statements.tone(numbers)}">{say(statements.depth(numbers), numbers)}</p>',
        table(("", "AbsRel (0 is perfect)", "delta1 (1 is perfect)"), lines, ours=0),
        f'<p class="note">Alignment: {escape(numbers["depth"]["alignment"])}. Means over '
        f"{number(numbers, 'depth.clips', '')} clips of the run's validation split; "
        f"{number(numbers, 'depth.steps', '')} solver steps. In the pictures nearer is brighter; the estimate is shown "
        "as the model made it, before alignment.</p>",
        *(show(row) for row in rows),
    )


def joint(numbers: Numbers, rows: Sequence[VideoRow]) -> str:
    """RGB and depth from text."""
    return section(
        "RGB and depth together, from a caption",
        "<p>The same model, given only the text under the films: captions of held-out clips. "
        f"{say(statements.joint(numbers), numbers)}</p>",
        *(show(row) for row in rows),
    )


def provenance_section(numbers: Numbers) -> str:
    """Machine, versions, durations."""
    machine = numbers["machine"]
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    busy = number(numbers, "machine.load_average", ".1f")
    steps = [(escape(name), number(numbers, f"seconds.{name}", ".1f")) for name in numbers["seconds"]]
    steps.append(("<b>together</b>", f"<b>{number(numbers, 'total_s', '.1f')}</b>"))
    used = ", ".join(f"{PACKAGE_LABELS.get(name, name)} {value}" for name, value in numbers["versions"].items())
    typed = "".join(f"<li><code>{escape(command)}</code></li>" for command in numbers["commands"].values())
    return section(
        "How it was made",
        f"<p>{escape(machine['processor'])}, {number(numbers, 'machine.cores', '')} cores, "
        f"{number(numbers, 'machine.memory_gb', '.0f')} GB memory, {escape(gpus)}, {escape(machine['system'])}; load "
        f"average at the end {busy}. {escape(numbers['made'])}.</p>",
        f"<p>{escape(used)}.</p>",
        f"<p>The demo did what these commands do, and they can be run again by hand:</p><ul>{typed}</ul>",
        table(("step", "seconds"), steps),
        '<p class="note">Durations add up over all sessions in this folder; what was there already is not done again. '
        "Everything on this page, and more, is in <code>numbers.json</code> beside it; the recipe is "
        "<code>corpus.toml</code>.</p>",
    )


# ---------------------------------------------------------------------- parts


def section(title: str, *parts: str) -> str:
    """A section of the page; `parts` are HTML."""
    return f"<section><h2>{escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def number(numbers: Numbers, path: str, form: str) -> str:
    """The number at `path`, printed, in a span that names the path."""
    return _span(path, format(look_up(numbers, path), form))


def say(text: str, numbers: Numbers) -> str:
    """A sentence of `verdicts` as HTML."""
    return statements.fill(escape(text, quote=False), numbers, _span)


def table(head: Sequence[str], lines: Sequence[Sequence[str]], *, words: int = 1, ours: int | None = None) -> str:
    """A table; cells are HTML, the first `words` columns are text and the others figures. `ours`: the row to stress."""
    classes = ["" if index < words else ' class="figure"' for index in range(len(head))]

    def line_of(kind: str, cells: Sequence[str], mark: str = "") -> str:
        marked = "".join(f"<{kind}{name}>{cell}</{kind}>" for name, cell in zip(classes, cells, strict=True))
        return f"<tr{mark}>{marked}</tr>"

    rows = [line_of("th", [escape(title) for title in head])]
    rows += [line_of("td", cells, ' class="ours"' if place == ours else "") for place, cells in enumerate(lines)]
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def show(row: VideoRow) -> str:
    """Films side by side, their text under them."""
    films = "".join(_film(film) for film in row.videos)
    count = len(row.videos)
    style = f'class="films" data-count="{count}" style="--count:{count}"'
    return f'<div class="row"><div {style}>{films}</div><p>{escape(row.text)}</p></div>'


def _film(film: PageVideo) -> str:
    still = _inline("image/jpeg", film.still)
    return (
        f'<figure><video autoplay loop muted playsinline width="{film.width_px}" height="{film.height_px}" '
        f'poster="{still}" aria-label="{escape(film.label)}" src="{_inline("video/mp4", film.mp4)}">'
        f'<img src="{still}" alt="{escape(film.label)}"></video><figcaption>{escape(film.label)}</figcaption></figure>'
    )


def _inline(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{b64encode(data).decode()}"


def _span(path: str, printed: str) -> str:
    return f'<span data-number="{escape(path)}">{escape(printed)}</span>'
