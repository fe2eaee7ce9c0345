"""WebDataset shards: videos are referenced within the tar, stored maps are imported without loss."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

from openuni.exchange.importer import FoundClip, ImportedClip, Importer
from openuni.exchange.importers._bounded_tar import Member, members
from openuni.exchange.importers._dataset_layout import (
    MAX_CAPTION_BYTES,
    MAX_JSON_BYTES,
    check_finished,
    parse_json,
    resolve_inside,
    split_of,
    visible_files,
)
from openuni.exchange.importers._sequences import VIDEOS
from openuni.exchange.importers._supplied import (
    MAX_FILE_MB,
    AllMaps,
    aligned_maps,
    caption_of,
    decode_maps,
    parse_entries,
    text_of,
    thumbnails_of,
)
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.manifests.text_files import decode_text
from openuni.manifests.video.clip import Clip
from openuni.manifests.video.probe import probe_clip

LOSSLESS = "rgb.mkv"  # pixels that were stored in a corpus
CAPTIONS = ("txt", "caption")
MAX_MEMBERS = 1000  # of one clip
ROUNDING_TOLERANCE_S = 0.002  # tolerated error of a duration, from timestamps in milliseconds
ROUNDED_SHARE = 0.01  # plus this share of the duration


class TarLocation(NamedTuple):
    """A clip's files in a shard."""

    root: str
    shard: str
    key: str
    members: tuple[Member, ...]
    fault: str = ""  # error message, if the shard is damaged from here on


@dataclass(frozen=True)
class WebDataset(Importer):
    """Reads KEY.mp4 (.mkv, .webm, .mov, .avi), KEY.txt, KEY.json and KEY.MODALITY.mkv from uncompressed tar shards.

    Accepts the shards of `openuni export --format webdataset` (openuni/exchange/exporters/README.md), and any others
    with one video per key. KEY.json may contain caption, split, origin, and the maps under "modalities"; the split can
    also be a folder named train, val or test above the shard. Nothing is unpacked: the clip's source is a byte range of
    the shard. Hidden files and folders are skipped; unfinished exports are rejected.
    """

    shards: Annotated[str, "glob pattern of the shards, relative to the dataset folder"] = "**/*.tar"
    caption: Annotated[str, "key of the caption in KEY.json, used if KEY.txt is missing"] = "caption"
    check_alignment: Annotated[bool, "reject maps that are misaligned in time with the video"] = True

    revision: ClassVar[int] = 2
    origin: ClassVar[str] = "the WebDataset convention; openuni export"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.shards or Path(self.shards).is_absolute() or ".." in self.shards:
            raise OpenUniError(
                f'webdataset: shards = "{self.shards}". Allowed: a pattern within the dataset, such as **/*.tar'
            )

    def find(self, folder: Path) -> Iterator[FoundClip]:
        """The keys of all shards, sorted by shard; only headers are read."""
        shards = visible_files(folder, self.shards)
        check_finished(folder, shards)
        if not shards:
            packed = next(iter(visible_files(folder, "**/*.tar.*")), None)
            hint = f" {packed.name} is compressed: decompress it to .tar first." if packed else ""
            raise OpenUniError(f'{folder}: no file matches shards = "{self.shards}".{hint}')
        for shard in shards:
            within = shard.relative_to(folder).with_suffix("").as_posix()
            for location in _clips_in(shard, folder):
                yield FoundClip(f"{within}/{location.key}", location)

    def read(self, found: FoundClip) -> ImportedClip[AllMaps]:
        """One clip: probes the video, and decodes the maps and checks them against it."""
        location: TarLocation = found.location
        shard = resolve_inside(Path(location.shard), location.root)
        _check_whole(location, shard)
        where = f"{shard}, {location.key}"
        by_suffix = _by_suffix(location.members, where)
        video = probe_clip(_source(by_suffix, shard, where))
        frames = video.frame_count
        sidecar: dict[str, Any] = {}
        if "json" in by_suffix:
            sidecar = parse_json(_bytes(shard, by_suffix["json"], MAX_JSON_BYTES), f"{where}.json")
        if LOSSLESS in by_suffix and sidecar.get("fps") is not None:
            video = replace(video, fps=_stated_fps(sidecar["fps"], video, f"{where}.json"))
        entries = [entry for entry in parse_entries(sidecar, f"{where}.json", frames) if entry.modality.name != "rgb"]

        def data_of(file: str) -> bytes:
            member = by_suffix.get(file.removeprefix(f"{location.key.rpartition('/')[2]}.").lower())
            if member is None:
                raise ClipError(f"{where}: {file} not found in the shard, but listed in the .json")
            return _bytes(shard, member, MAX_FILE_MB * 10**6)

        maps, payloads = decode_maps(entries, data_of, (frames, video.height_px, video.width_px), where)
        aligned = aligned_maps(maps, thumbnails_of(video), where) if self.check_alignment and maps else []
        row: dict[str, Any] = dict.fromkeys(AllMaps._fields) | maps | {"aligned_by_motion": aligned}
        return ImportedClip(
            AllMaps(**row),
            fps=video.fps,
            video=video,
            caption=self._caption(by_suffix, shard, sidecar, where),
            origin=text_of(sidecar, "origin", where),
            split=text_of(sidecar, "split", where) or split_of(found.key),
            payloads=payloads,
        )

    def _caption(self, members: dict[str, Member], shard: Path, sidecar: dict[str, Any], where: str) -> str | None:
        for suffix in CAPTIONS:
            if suffix in members:
                text = decode_text(_bytes(shard, members[suffix], MAX_CAPTION_BYTES), f"{where}.{suffix}")
                return caption_of(text, sidecar, self.caption, f"{where}.json") if text.strip() else None
        return text_of(sidecar, self.caption, f"{where}.json")


def _clips_in(shard: Path, root: Path) -> Iterator[TarLocation]:
    """The clips of one shard: consecutive members whose names are equal up to the first dot (WebDataset convention).

    As there, hidden files (`._clip.mp4` of macOS) and files without a suffix belong to no clip.
    """
    key: str | None = None
    listed: list[Member] = []
    fault = ""
    with shard.open("rb") as file:
        for path, member in members(file):
            if member is None:
                fault = path
                break
            folder, slash, name = path.rpartition("/")
            stem, dot, suffix = name.partition(".")
            if not (stem and dot):
                continue
            if f"{folder}{slash}{stem}" != key:
                if key is not None:
                    yield TarLocation(str(root), str(shard), key, tuple(listed))
                key, listed = f"{folder}{slash}{stem}", []
            if len(listed) <= MAX_MEMBERS:  # one more: `_check_whole` says so
                listed.append(Member(suffix, member.offset, member.nbytes))
    if key is not None:
        yield TarLocation(str(root), str(shard), key, tuple(listed))
    if fault:
        yield TarLocation(str(root), str(shard), "(damaged)", (), fault)


def _check_whole(location: TarLocation, shard: Path) -> None:
    if location.fault:
        raise ClipError(f"{shard}: {location.fault}. Download it again; the clips before are imported.")
    if len(location.members) > MAX_MEMBERS:
        raise ClipError(f"{shard}: {location.key} has more than {MAX_MEMBERS} files. Name one clip by one key.")
    size = shard.stat().st_size
    for member in location.members:
        if member.offset + member.nbytes > size:
            raise ClipError(f"{shard} ends at byte {size}, within {location.key}.{member.suffix}. Download it again.")


def _by_suffix(members: tuple[Member, ...], where: str) -> dict[str, Member]:
    """The clip's files by lower-case suffix; raises `ClipError` for duplicates."""
    found: dict[str, Member] = {}
    for member in members:
        other = found.setdefault(member.suffix.lower(), member)
        if other is not member:
            raise ClipError(f"{where} has .{other.suffix} and .{member.suffix}: expected one. Remove the other.")
    return found


def _stated_fps(declared: Any, video: Clip, where: str) -> float:
    """The frame rate in KEY.json for pixels that were stored in a corpus, whose container rounds it to milliseconds."""
    number = isinstance(declared, int | float) and not isinstance(declared, bool)
    if not (number and 0 < declared < math.inf):
        raise ClipError(f'{where}: "fps" must be a number above 0, got {declared!r}')
    error_s = abs(video.frame_count / declared - video.duration_s)
    if error_s > ROUNDING_TOLERANCE_S + ROUNDED_SHARE * video.duration_s:
        raise ClipError(
            f'{where}: "fps" is {declared:g}, {LOSSLESS} has {video.fps:g}: they must agree. Correct the .json.'
        )
    return float(declared)


def _source(members: dict[str, Member], shard: Path, where: str) -> str:
    """The clip's pixels: those stored without loss in a corpus, else the only video."""
    videos = [suffix for suffix in members if f".{suffix}" in VIDEOS]
    if LOSSLESS in members:
        videos = [LOSSLESS]
    if len(videos) != 1:
        found = ", ".join(sorted(members)) or "nothing"
        raise ClipError(f"{where}: expected one video ({', '.join(VIDEOS)}), got {found}")
    member = members[videos[0]]
    if not member.nbytes:
        raise ClipError(f"{where}.{videos[0]} is empty")
    return f"{shard}#bytes={member.offset}-{member.offset + member.nbytes - 1}"


def _bytes(shard: Path, member: Member, max_bytes: int) -> bytes:
    if member.nbytes > max_bytes:
        raise ClipError(f"{shard}: {member.suffix} has {member.nbytes:,} bytes; the limit is {max_bytes:,}")
    with shard.open("rb") as file:
        file.seek(member.offset)
        return file.read(member.nbytes)
