"""Rows of text as columns that stand under one another, for terminals."""

from collections.abc import Container, Sequence


def format_columns(rows: Sequence[Sequence[str]], right: Container[int] = ()) -> list[str]:
    """One line per row, columns two blanks apart; those numbered in `right` end together, all others begin so."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            text.rjust(width) if number in right else text.ljust(width)
            for number, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
