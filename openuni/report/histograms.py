"""Score distributions of a corpus as text, for choosing thresholds."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from openuni.console.text_table import format_columns
from openuni.manifests.contracts.schema import null_nonfinite
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.layout import filter_group

BINS = 24
TAIL = 0.005  # share of clips beyond each end of the range, so that an outlier does not flatten the histogram
BARS = " ▁▂▃▄▅▆▇█"
QUANTILES = (0.05, 0.5, 0.95)


def histograms(corpus: Corpus) -> str:
    """Return one line per numeric score: its 5, 50 and 95 % quantiles, nulls, and histogram with its range."""
    rows: list[tuple[str, ...]] = [("score", "5 %", "50 %", "95 %", "null", "from", "", "to")]
    rows += [row for name in corpus.operators("filter") for row in _of_filter(corpus, name)]
    return "\n".join(format_columns(rows, right=(1, 2, 3, 4, 5, 7)))


def _of_filter(corpus: Corpus, name: str) -> Iterator[tuple[str, ...]]:
    dataset = corpus.dataset(filter_group(name))
    for field in dataset.schema.field(name).type:
        kind = field.type
        if field.name == "ms" or not (
            pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)
        ):
            continue
        column = dataset.to_table(columns={"value": pads.field(name, field.name)})["value"]
        column = pa.chunked_array([null_nonfinite(chunk) for chunk in column.chunks], kind)
        values = pc.cast(column.drop_null(), pa.float64()).to_numpy()
        nulls = f"{column.null_count:,}" if column.null_count else ""
        if not len(values):
            yield (f"{name}.{field.name}", "", "", "", nulls, "", "", "")
            continue
        low, high = np.quantile(values, [TAIL, 1 - TAIL]) if len(values) > 1 / TAIL else (values.min(), values.max())
        marks = (f"{value:.3g}" for value in np.quantile(values, QUANTILES))
        yield (f"{name}.{field.name}", *marks, nulls, f"{low:.3g}", bars(values, low, high), f"{high:.3g}")


def bars(values: np.ndarray, low: float, high: float) -> str:
    """Draw float64 [N] as a histogram of `BINS` block characters from `low` to `high`; no bin with a clip is blank."""
    counts, _ = np.histogram(np.clip(values, low, high), BINS, (low, high if high > low else low + 1))
    heights = np.ceil(counts / counts.max() * (len(BARS) - 1)).astype(int)
    return "".join(BARS[height] for height in heights)
