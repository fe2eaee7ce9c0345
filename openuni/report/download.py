"""Fetching one file from a web server: resumed where it stopped, checked, and in place only when whole."""

import hashlib
from pathlib import Path

from openuni.manifests.errors import OpenUniError

CHUNK_BYTES = 1 << 16  # what is lost of a connection that breaks
TIMEOUT_S = 60.0


def download(url: str, target: Path, sha256: str = "") -> None:
    """Put the file at `url` (http or https) at `target`. What was fetched before lies in `TARGET.part`.

    `sha256`: all or the first of its hexadecimal digits; another file is refused and what was fetched of it deleted.
    Raises `OpenUniError` for that, and when the server cannot be reached or refuses.
    """
    import requests

    if not url.startswith(("https://", "http://")):
        raise OpenUniError(f"{url} is not fetched. Allowed: https:// and http://")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    try:
        _append(url, part)
    except requests.RequestException as error:
        raise OpenUniError(f"fetching {url} failed: {error}. Run the same command again: it goes on.") from error
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(sha256):
        part.unlink()
        raise OpenUniError(f"{url} has sha256 {found}, stated is {sha256}: it is not the file that was published")
    part.replace(target)


def _append(url: str, part: Path) -> None:
    """Fetch what is missing of a file."""
    import requests
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    have = part.stat().st_size if part.exists() else 0
    # "identity": lengths and ranges count the bytes that arrive
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        if have and response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # nothing is missing: the digest will tell
        response.raise_for_status()
        resumed = response.status_code == requests.codes.partial_content
        start = have if resumed else 0
        total = start + int(response.headers["Content-Length"]) if "Content-Length" in response.headers else None
        columns = (TextColumn(part.stem), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with part.open("ab" if resumed else "wb") as file, Progress(*columns) as progress:
            task = progress.add_task("", total=total, completed=start)
            for chunk in response.iter_content(CHUNK_BYTES):
                file.write(chunk)
                progress.advance(task, len(chunk))
    size = part.stat().st_size
    if total is not None and size < total:
        raise requests.ConnectionError(f"the connection ended after {size:,} of {total:,} bytes")
