"""Download of one file over HTTP: resumable, verified against its digest, and visible only when complete."""

import hashlib
from pathlib import Path

from openuni.manifests.errors import OpenUniError

CHUNK_BYTES = 1 << 16  # at most this much is lost when a connection breaks
TIMEOUT_S = 60.0


def download(url: str, target: Path, sha256: str = "") -> None:
    """Download `url` (http or https) to `target`. An unfinished download is stored in `TARGET.part` and resumed.

    `sha256`: the expected digest, or its first hexadecimal digits; empty: not verified. A file with another digest is
    rejected and deleted. Raises `OpenUniError` for that, for other URL schemes and for HTTP and connection errors.
    """
    import requests

    if not url.startswith(("https://", "http://")):
        raise OpenUniError(f"cannot download {url}. Allowed: https:// and http://")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    try:
        _append(url, part)
    except requests.RequestException as error:
        raise OpenUniError(f"download of {url} failed: {error}. Rerun the command to resume.") from error
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(sha256):
        part.unlink()
        raise OpenUniError(f"{url}: expected sha256 {sha256}, got {found}: not the published file. It was deleted.")
    part.replace(target)


def _append(url: str, part: Path) -> None:
    """Download the missing rest of a file."""
    import requests
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    have = part.stat().st_size if part.exists() else 0
    # without compression, lengths and ranges count the bytes that are received
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        if have and response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # already complete; the digest is verified next
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
