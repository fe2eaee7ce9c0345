"""UnityVideo's released layout: a CSV of videos, prompts and one video per modality, in colours."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from annotated_types import Ge

from openuni.exchange.importer import FoundClip, ImportedClip, Importer
from openuni.exchange.importers._colours import (
    DepthColours,
    densepose_from_colours,
    depth_from_colours,
    flow_from_colours,
    ids_from_palette,
    segmentation_from_colours,
)
from openuni.exchange.importers._csv_tables import ClipRecords, CsvColumns, header, joined
from openuni.exchange.importers._dataset_layout import check_finished, resolve_inside, split_of, visible_files
from openuni.exchange.importers._stream_scan import (
    MAX_BYTES,
    is_named_as_video,
    map_in_threads,
    passthrough_payload,
    subsample_frames,
)
from openuni.exchange.importers._supplied import aligned_maps, text_of, thumbnails_of
from openuni.manifests.contracts.decoded_clip import decode
from openuni.manifests.contracts.modality import Payload, find_modality
from openuni.manifests.contracts.payloads import check_size, parse_constants
from openuni.manifests.errors import ClipError, OpenUniError
from openuni.manifests.modalities.densepose import DensePose
from openuni.manifests.modalities.depth import Depth
from openuni.manifests.modalities.flow import DEFAULT_DIVISOR_SHARE, STEP_PX, Flow, FlowConstants
from openuni.manifests.modalities.segmentation import Segmentation
from openuni.manifests.video.clip import Clip
from openuni.manifests.video.passthrough import PixelDecoder, PixelDecoding
from openuni.manifests.video.probe import probe_clip
from openuni.manifests.video.reader import decode_full_depth
from openuni.pipeline.phases import decoder_threads

VIDEO, PROMPT = "video", "prompt"
MAPS = {
    "depth": "depth",
    "densepose": "densepose",
    "raft": "flow",
    "segmentation": "segmentation",
}  # column -> modality
UNSUPPORTED_COLUMNS = ("skeleton",)  # a drawing cannot be read back
FACTS = "clips.jsonl"  # of openuni export


class CSVMaps(NamedTuple):
    """What the colours of the set's videos say."""

    depth: Depth | None
    flow: Flow | None
    segmentation: Segmentation | None
    densepose: DensePose | None  # parts alone: U and V are not in the colours
    constants_from: Annotated[str, "of depth and flow: clips.jsonl (the exported ones), options, or assumed"]
    instance_colours: Annotated[list[str] | None, "of ids 0, 1, ... where they were found: #rrggbb"]
    unread: Annotated[list[str], "columns that name a video which is not read: drawings cannot be"]
    aligned_by_motion: Annotated[list[str], "maps that motion proves in step with the video; others cannot tell"]


class CsvLocation(NamedTuple):
    """One video and what the CSVs say of it."""

    root: str
    video: str
    cells: dict[str, str]
    fault: str
    facts: tuple[int, int] | None  # the line of clips.jsonl


class DecodedMap(NamedTuple):
    """A map of a clip."""

    signal: Any  # the modality; of every n-th row and column where there is a payload
    colours: list[str] | None  # of instances, where they are not the palette's
    payload: Payload | None = None  # the video as it is


@dataclass(frozen=True)
class OpenUniCSV(Importer):
    """Reads CSVs with the columns video, prompt, depth, densepose, raft, segmentation, skeleton; each may be absent.

    One wide CSV or one per modality: rows about one video are joined, an empty cell is a gap. Paths are relative to the
    CSV, or absolute. The video stays where it lies. Maps are read back from their colours, so they are as good as these
    are: depth to 1/255 of its range and without a unit, flow to 1 % of its scale, which the colours do not have,
    DensePose's parts without U and V. With the clips.jsonl of `openuni export` units and scales are the exported ones.
    """

    csv: Annotated[str, "pattern of the CSVs within the folder; those without a column video are passed over"] = "*.csv"
    allow_outside: Annotated[bool, "read videos that do not lie in the set's folder"] = False
    depth_colours: Annotated[
        DepthColours, "grey: near is bright; spectral: near is red (Depth Anything's); inferno: near is bright"
    ] = "grey"
    flow_divisor_px: Annotated[
        float, "speed that is painted in full colour, pixels per frame; 0: 2 % of the diagonal", Ge(0)
    ] = 0.0
    segmentation_colours: Annotated[
        Literal["palette", "any"], "palette: ids by the VOC palette; any: each colour that covers 0.2 % is an instance"
    ] = "palette"
    keep_files: Annotated[bool, "maps stay videos of their colours, read at need; false: read once and coded anew"] = (
        True
    )
    check_alignment: Annotated[bool, "refuse maps that are frames ahead of the video or behind it"] = True

    revision: ClassVar[int] = 3
    origin: ClassVar[str] = "UnityVideo's released data loader"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.csv or Path(self.csv).is_absolute() or ".." in self.csv:
            raise OpenUniError(f'openuni_csv: csv = "{self.csv}". Allowed: a pattern within the set, as *.csv')

    def find(self, folder: Path) -> Iterator[FoundClip]:
        """The videos that the CSVs name, by path; those below the folder are called by where they lie in it."""
        files = {path: header(path) for path in visible_files(folder, self.csv)}
        found = {path: columns for path, columns in files.items() if VIDEO in columns}
        check_finished(folder, found)
        if not found:
            seen = "; ".join(f"{path.name}: {', '.join(columns)}" for path, columns in files.items()) or "no such file"
            raise OpenUniError(f'{folder}: no CSV ({self.csv}) has the column "{VIDEO}". Found: {seen[:300]}.')
        facts = ClipRecords(folder / FACTS)
        for row in joined(found, CsvColumns(VIDEO, PROMPT, (*MAPS, *UNSUPPORTED_COLUMNS))):
            key = row.video.removeprefix(f"{folder}/")
            yield FoundClip(
                key, CsvLocation(str(folder), row.video, row.cells, row.fault, facts.places.get(Path(row.video).stem))
            )

    def read(self, found: FoundClip) -> ImportedClip[CSVMaps]:
        """One clip: its video probed, its maps decoded, held against it and read back from their colours."""
        place: CsvLocation = found.location
        if place.fault:
            raise ClipError(place.fault)
        video = probe_clip(self._path(place.video, place.root))
        facts = ClipRecords.read(Path(place.root) / FACTS, place.facts) if place.facts else {}
        cells = {column: cell for column, cell in place.cells.items() if column in MAPS}
        looks = map_in_threads(lambda column: self._map(column, cells[column], place.root, video, facts), list(cells))
        maps = {MAPS[column]: found.signal for column, found in looks.items()}
        payloads = {MAPS[column]: found.payload for column, found in looks.items() if found.payload is not None}
        colours = next((found.colours for found in looks.values() if found.colours), None)
        proved = aligned_maps(maps, thumbnails_of(video), found.key) if self.check_alignment and maps else []
        stored = {name: None if name in payloads else signal for name, signal in maps.items()}
        row: dict[str, Any] = dict.fromkeys(CSVMaps._fields) | stored
        row |= {"constants_from": self._constants_from(facts), "instance_colours": colours}
        row |= {
            "unread": [column for column in UNSUPPORTED_COLUMNS if column in place.cells],
            "aligned_by_motion": proved,
        }
        return ImportedClip(
            CSVMaps(**row),
            fps=video.fps,
            video=video,
            caption=place.cells.get(PROMPT),
            origin=text_of(facts, "origin", FACTS),
            split=text_of(facts, "split", FACTS) or split_of(found.key),
            payloads=payloads,
        )

    def _path(self, given: str, root: str) -> str:
        path = Path(given)
        real = path.resolve() if self.allow_outside else resolve_inside(path, root)
        if not real.is_file():
            raise ClipError(f"{given} is not there, the CSV names it")
        return str(real)

    def _map(self, column: str, cell: str, root: str, video: Clip, facts: dict[str, Any]) -> "DecodedMap":
        """A map's video, held against the clip's: as what it shows, or kept as it is."""
        name, path = MAPS[column], self._path(cell, root)
        map_video = probe_clip(path)
        wanted = video.frame_count, video.height_px, video.width_px
        if map_video.frame_count != video.frame_count:
            text = f"{map_video.frame_count} frames as {column}, the video has {video.frame_count}"
            raise ClipError(f"{cell} has {text}: they need as many")
        check_size((map_video.frame_count, map_video.height_px, map_video.width_px), cell, wanted)
        given = _constants(facts, name, f"{root}/{FACTS}")
        if given is None and name == "flow":  # by the size of the whole map
            diagonal_px = math.hypot(map_video.height_px, map_video.width_px)
            given = FlowConstants(STEP_PX, self.flow_divisor_px or DEFAULT_DIVISOR_SHARE * diagonal_px, False)
        in_other_colours = (name == "depth" and self.depth_colours != "grey") or (
            name == "segmentation" and self.segmentation_colours == "any"
        )
        can_be_kept = is_named_as_video(Path(path)) and Path(path).stat().st_size <= MAX_BYTES
        if not self.keep_files or (in_other_colours and given is None) or not can_be_kept:
            return DecodedMap(
                *self._from_colours(name, decode(map_video, threads=decoder_threads()).frames, given, cell)
            )
        data = Path(path).read_bytes()
        frames = decode_full_depth(map_video, data=data, threads=1)
        reading = PixelDecoding("rendering", levels=True)
        convert = PixelDecoder(reading, frames.dtype)
        thumbnails_of = np.stack([convert(image) for image in subsample_frames(frames)])
        signal, colours = self._from_colours(name, thumbnails_of, given, cell)
        constants = given if given is not None and name != "flow" else signal.constants()
        kind = Path(path).suffix[1:].lower()
        size_px = (map_video.height_px, map_video.width_px)
        payload = passthrough_payload(kind, [data], reading, constants, size_px, map_video.frame_count)
        return DecodedMap(signal, colours, payload)

    def _from_colours(self, name: str, frames: Any, given: Any, where: str) -> tuple[Any, list[str] | None]:
        if name == "depth":
            return depth_from_colours(frames, "grey" if given else self.depth_colours, given, where), None
        if name == "flow":
            return flow_from_colours(frames, given, where), None
        if name == "densepose":
            return densepose_from_colours(frames, where), None
        if given is None and self.segmentation_colours == "any":
            return segmentation_from_colours(frames, where)
        return ids_from_palette(frames, given, where), None

    def _constants_from(self, facts: dict[str, Any]) -> str:
        return FACTS if facts else "options" if self.flow_divisor_px else "assumed"


def _constants(facts: dict[str, Any], name: str, where: str) -> Any | None:
    """The exported map's constants, None where there are none."""
    table = facts.get("modalities", {})
    entry = table.get(name) if isinstance(table, dict) else None
    if entry is None:
        return None
    if not isinstance(entry, dict):
        raise ClipError(f"{where}: {name} must be a table, found {entry!r}")
    return parse_constants(find_modality(name), entry.get("constants"), where)
