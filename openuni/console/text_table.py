"""Text tables for terminals."""

from collections.abc import Container, Sequence


def format_columns(rows: Sequence[Sequence[str]], right: Container[int] = ()) -> list[str]:
    """Return one line per row, with two spaces between columns. Columns in `right` are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            text.rjust(width) if number in right else text.ljust(width)
            for number, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
