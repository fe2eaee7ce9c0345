"""CSV rows of exports: quoted so that every reader finds the same cells, and so that spreadsheets compute nothing."""

import csv
import io
import re
from collections.abc import Iterable

# spreadsheets compute cells that begin with one of these; a leading apostrophe makes a cell text
FORMULA = re.compile(r"'*[=+\-@\t\r]")


def csv_line(cells: Iterable[str]) -> str:
    """One row in CSV, with a `\n` at its end. Cells that spreadsheets would compute get a leading apostrophe."""
    line = io.StringIO()
    # with "\n" as its line end, Python's writer leaves cells that contain "\r" unquoted, and readers end the row there
    csv.writer(line, lineterminator="\r\n").writerow([guarded(cell) for cell in cells])
    return line.getvalue().removesuffix("\r\n") + "\n"


def guarded(cell: str) -> str:
    """The cell, with an apostrophe before it if a spreadsheet would compute it. Inverse: `unguarded`."""
    return f"'{cell}" if FORMULA.match(cell) else cell


def unguarded(cell: str) -> str:
    """The cell that `guarded` was given."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell
