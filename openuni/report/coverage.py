"""Terminal tables of a corpus: modality coverage by collection, and storage size by modality."""

from collections.abc import Sequence

from openuni.console.text_table import format_columns
from openuni.manifests.corpus.coverage import StoredSize


def format_coverage(rows: Sequence[dict[str, str | int]]) -> str:
    """Format the rows of `openuni.manifests.corpus.coverage.coverage`; empty text if there are none."""
    if not rows:
        return ""
    cells = [[value if isinstance(value, str) else f"{value:,}" for value in row.values()] for row in rows]
    return "\n".join(format_columns([list(rows[0]), *cells], right=range(1, len(rows[0]))))


def format_sizes(sizes: Sequence[StoredSize]) -> str:
    """Format the rows of `openuni.manifests.corpus.coverage.stored_sizes`: sizes per clip (MB) and in total (GB)."""
    if not sizes:
        return ""
    rows = [("modality", "annotator", "clips", "mean MB per clip", "max MB per clip", "total")]
    for size in sizes:
        mean, largest = size.nbytes / size.clips / 1e6, size.largest_nbytes / 1e6
        total = size.nbytes / 1e9
        rows.append(
            (size.modality, size.annotator, f"{size.clips:,}", f"{mean:,.3f}", f"{largest:,.3f}", f"{total:,.3f} GB")
        )
    return "\n".join(format_columns(rows, right=range(2, 6)))
