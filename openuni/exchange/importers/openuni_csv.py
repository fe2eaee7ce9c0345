"""UnityVideo's released layout: a CSV of videos, prompts and one colour-coded video per modality."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from annotated_types import Ge

from openuni.exchange.csv_cells import guarded, unguarded
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
from openuni.manifests.contracts.options import Formerly
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
UNSUPPORTED_COLUMNS = ("skeleton",)  # drawings cannot be decoded
FACTS = "clips.jsonl"  # written by openuni export


class CSVMaps(NamedTuple):
    """The maps decoded from the dataset's colour-coded videos."""

    depth: Depth | None
    flow: Flow | None
    segmentation: Segmentation | None
    densepose: DensePose | None  # parts only: the colours do not encode U and V
    constants_from: Annotated[
        str, "source of the constants of depth and optical flow: clips.jsonl (exported), options, or assumed"
    ]
    instance_colours: Annotated[list[str] | None, "colours (#rrggbb) of ids 0, 1, ... if detected"]
    unread: Annotated[list[str], "columns whose videos are not imported, because drawings cannot be decoded"]
    aligned_by_motion: Annotated[list[str], "maps whose temporal alignment with the video is confirmed by motion"]


class CsvLocation(NamedTuple):
    """One video and its joined CSV rows."""

    root: str
    video: str
    cells: dict[str, str]
    fault: str
    facts: tuple[int, int] | None  # offset and length of its line in clips.jsonl


class DecodedMap(NamedTuple):
    """A decoded map of a clip."""

    signal: Any  # the modality; only every n-th row and column if there is a payload
    colours: list[str] | None  # of instances, if not from the palette
    payload: Payload | None = None  # the original video


@dataclass(frozen=True)
class OpenUniCSV(Importer):
    """Reads CSVs with the columns video, prompt, depth, densepose, raft, segmentation, skeleton; only video is needed.

    One wide CSV or one per modality: rows are joined by video, empty cells are gaps. Paths are absolute or relative to
    the CSV. Videos are referenced where they are. Maps are decoded from their colours, with the colours' precision:
    depth to 1/255 of its range and without a unit; optical flow to 1 % of its scale, which the colours do not encode;
    DensePose parts without U and V. With the clips.jsonl of `openuni export`, the exported units and scales are used.
    """

    csv: Annotated[
        str, "glob pattern of the CSVs, relative to the dataset folder; CSVs without a column video are skipped"
    ] = "*.csv"
    allow_outside: Annotated[bool, "allow videos outside the dataset folder"] = False
    depth_colours: Annotated[
        DepthColours,
        "colour scale of depth; grey: near is bright; spectral: near is red (Depth Anything); inferno: near is bright",
    ] = "grey"
    flow_divisor_px: Annotated[
        float, "optical flow drawn at full saturation, pixels per frame; 0: 2 % of the diagonal", Ge(0)
    ] = 0.0
    segmentation_colours: Annotated[
        Literal["palette", "any"],
        "ids of instances; palette: by the VOC palette; any: one per colour that covers at least 0.2 %",
    ] = "palette"
    passthrough: Annotated[
        bool, "store the original colour videos, decoded on access; false: re-encode", Formerly("keep_files")
    ] = True
    check_alignment: Annotated[bool, "reject maps that are misaligned in time with the video"] = True

    revision: ClassVar[int] = 3
    origin: ClassVar[str] = "UnityVideo's released data loader"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.csv or Path(self.csv).is_absolute() or ".." in self.csv:
            raise OpenUniError(f'openuni_csv: csv = "{self.csv}". Allowed: a pattern within the dataset, such as *.csv')

    def find(self, folder: Path) -> Iterator[FoundClip]:
        """The videos named in the CSVs, sorted by path; keys of videos in the dataset folder are relative to it."""
        files = {path: header(path) for path in visible_files(folder, self.csv)}
        found = {path: columns for path, columns in files.items() if VIDEO in columns}
        check_finished(folder, found)
        if not found:
            headers = (
                "; ".join(f"{path.name}: {', '.join(columns)}" for path, columns in files.items()) or "no matching file"
            )
            raise OpenUniError(f'{folder}: no CSV ({self.csv}) has the column "{VIDEO}". Found: {headers[:300]}.')
        facts = ClipRecords(folder / FACTS)
        for row in joined(found, CsvColumns(VIDEO, PROMPT, (*MAPS, *UNSUPPORTED_COLUMNS))):
            key = row.video.removeprefix(f"{folder}/")
            yield FoundClip(
                key, CsvLocation(str(folder), row.video, row.cells, row.fault, facts.spans.get(Path(row.video).stem))
            )

    def read(self, found: FoundClip) -> ImportedClip[CSVMaps]:
        """One clip: probes its video, and decodes its maps and checks them against it."""
        location: CsvLocation = found.location
        if location.fault:
            raise ClipError(location.fault)
        video = probe_clip(self._path(location.video, location.root))
        facts = ClipRecords.read(Path(location.root) / FACTS, location.facts) if location.facts else {}
        cells = {column: cell for column, cell in location.cells.items() if column in MAPS}
        decoded_maps = map_in_threads(
            lambda column: self._map(column, cells[column], location.root, video, facts), list(cells)
        )
        maps = {MAPS[column]: found.signal for column, found in decoded_maps.items()}
        payloads = {MAPS[column]: found.payload for column, found in decoded_maps.items() if found.payload is not None}
        colours = next((found.colours for found in decoded_maps.values() if found.colours), None)
        aligned = aligned_maps(maps, thumbnails_of(video), found.key) if self.check_alignment and maps else []
        stored = {name: None if name in payloads else signal for name, signal in maps.items()}
        row: dict[str, Any] = dict.fromkeys(CSVMaps._fields) | stored
        row |= {"constants_from": self._constants_from(facts), "instance_colours": colours}
        row |= {
            "unread": [column for column in UNSUPPORTED_COLUMNS if column in location.cells],
            "aligned_by_motion": aligned,
        }
        return ImportedClip(
            CSVMaps(**row),
            fps=video.fps,
            video=video,
            caption=_caption(location.cells.get(PROMPT, ""), facts),
            origin=text_of(facts, "origin", FACTS),
            split=text_of(facts, "split", FACTS) or split_of(found.key),
            payloads=payloads,
        )

    def _path(self, cell: str, root: str) -> str:
        path = Path(cell)
        real = path.resolve() if self.allow_outside else resolve_inside(path, root)
        if not real.is_file():
            raise ClipError(f"{cell} not found, but listed in the CSV")
        return str(real)

    def _map(self, column: str, cell: str, root: str, video: Clip, facts: dict[str, Any]) -> "DecodedMap":
        """A map's video, checked against the clip's video; decoded, or as a payload."""
        name, path = MAPS[column], self._path(cell, root)
        map_video = probe_clip(path)
        expected = video.frame_count, video.height_px, video.width_px
        if map_video.frame_count != video.frame_count:
            text = f"{map_video.frame_count} frames for {column}, the video has {video.frame_count}"
            raise ClipError(f"{cell} has {text}: the numbers must be the same")
        check_size((map_video.frame_count, map_video.height_px, map_video.width_px), cell, expected)
        constants = _constants(facts, name, f"{root}/{FACTS}")
        if constants is None and name == "flow":  # depends on the size of the whole map
            diagonal_px = math.hypot(map_video.height_px, map_video.width_px)
            constants = FlowConstants(STEP_PX, self.flow_divisor_px or DEFAULT_DIVISOR_SHARE * diagonal_px, False)
        needs_colour_lookup = (name == "depth" and self.depth_colours != "grey") or (
            name == "segmentation" and self.segmentation_colours == "any"
        )
        can_pass_through = is_named_as_video(Path(path)) and Path(path).stat().st_size <= MAX_BYTES
        if not self.passthrough or (needs_colour_lookup and constants is None) or not can_pass_through:
            return DecodedMap(
                *self._from_colours(name, decode(map_video, threads=decoder_threads()).frames, constants, cell)
            )
        data = Path(path).read_bytes()
        frames = decode_full_depth(map_video, data=data, threads=1)
        decoding = PixelDecoding("rendering", levels=True)
        convert = PixelDecoder(decoding, frames.dtype)
        samples = np.stack([convert(image) for image in subsample_frames(frames)])
        signal, colours = self._from_colours(name, samples, constants, cell)
        constants = constants if constants is not None and name != "flow" else signal.constants()
        kind = Path(path).suffix[1:].lower()
        size_px = (map_video.height_px, map_video.width_px)
        payload = passthrough_payload(kind, [data], decoding, constants, size_px, map_video.frame_count)
        return DecodedMap(signal, colours, payload)

    def _from_colours(self, name: str, frames: Any, constants: Any, where: str) -> tuple[Any, list[str] | None]:
        if name == "depth":
            return depth_from_colours(frames, "grey" if constants else self.depth_colours, constants, where), None
        if name == "flow":
            return flow_from_colours(frames, constants, where), None
        if name == "densepose":
            return densepose_from_colours(frames, where), None
        if constants is None and self.segmentation_colours == "any":
            return segmentation_from_colours(frames, where)
        return ids_from_palette(frames, constants, where), None

    def _constants_from(self, facts: dict[str, Any]) -> str:
        return FACTS if facts else "options" if self.flow_divisor_px else "assumed"


def _caption(cell: str, facts: dict[str, Any]) -> str | None:
    """The caption in a cell. Only exports guard cells from spreadsheets; their clips.jsonl has the exact text."""
    exact = text_of(facts, "caption", FACTS)
    if not facts:
        return cell or None
    return exact if guarded(exact or "").strip() == cell else unguarded(cell) or None


def _constants(facts: dict[str, Any], name: str, where: str) -> Any | None:
    """The exported map's constants, None if there are none."""
    table = facts.get("modalities", {})
    entry = table.get(name) if isinstance(table, dict) else None
    if entry is None:
        return None
    if not isinstance(entry, dict):
        raise ClipError(f"{where}: {name} must be a table, got {entry!r}")
    return parse_constants(find_modality(name), entry.get("constants"), where)
