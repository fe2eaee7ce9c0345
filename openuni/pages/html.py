"""Parts of a page. Text from files (captions, names, messages) is escaped where it is text; cells are HTML."""

from base64 import b64encode
from collections.abc import Sequence
from html import escape

from openuni.pages.style import SCRIPT, STYLE
from openuni.pages.videos import PageVideo, VideoRow


def document(title: str, header: str, sections: Sequence[str]) -> str:
    """The HTML file. `header` and `sections` are HTML; empty sections are left out."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'  # otherwise browsers request one from the network
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{header}\n<main>\n"
        + "\n".join(filter(None, sections))
        + f"\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A section of the page; `parts` are HTML."""
    return f"<section><h2>{escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def table(head: Sequence[str], lines: Sequence[Sequence[str]], *, words: int = 1, ours: int | None = None) -> str:
    """A table of HTML cells. The first `words` columns are text, the others numbers. `ours`: index of the bold row."""
    classes = ["" if index < words else ' class="figure"' for index in range(len(head))]

    def line_of(kind: str, cells: Sequence[str], mark: str = "") -> str:
        marked = "".join(f"<{kind}{name}>{cell}</{kind}>" for name, cell in zip(classes, cells, strict=True))
        return f"<tr{mark}>{marked}</tr>"

    rows = [line_of("th", [escape(title) for title in head])]
    rows += [line_of("td", cells, ' class="ours"' if place == ours else "") for place, cells in enumerate(lines)]
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def show(row: VideoRow) -> str:
    """Videos side by side, with their text below."""
    videos = "".join(_video(video) for video in row.videos)
    count = len(row.videos)
    style = f'class="videos" data-count="{count}" style="--count:{count}"'
    return f'<div class="row"><div {style}>{videos}</div><p>{escape(row.text)}</p></div>'


def _video(video: PageVideo) -> str:
    still = _inline("image/jpeg", video.still)
    return (
        f'<figure><video autoplay loop muted playsinline width="{video.width_px}" height="{video.height_px}" '
        f'poster="{still}" aria-label="{escape(video.label)}" src="{_inline("video/mp4", video.mp4)}">'
        f'<img src="{still}" alt="{escape(video.label)}"></video>'
        f"<figcaption>{escape(video.label)}</figcaption></figure>"
    )


def _inline(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{b64encode(data).decode()}"
