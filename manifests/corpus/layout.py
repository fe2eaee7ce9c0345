"""The layout of a corpus: the only module that builds paths inside one.

A column group's name is its folder: `clips`, `filters/NAME`, `annotations/NAME`, `latents/FAMILY/MODALITY`,
`text/FAMILY`. The folder contains the group's Parquet parts and their shards.
"""

CORPUS_RECORD = "corpus.json"
CLIPS = "clips"
LATENTS = "latents"
TEXT = "text"
RUNS = "runs"  # one ledger per run, named by its start time
FAILURES_SUFFIX = ".failures.jsonl"
OPERATOR_FOLDERS = {"filter": "filters", "annotator": "annotations"}
PENDING_SPLITS = "splits.pending.parquet"  # clip_id and split: decided, but not yet written to all parts of `clips`
SUPERSEDED = "superseded"  # folder in a group: parts of other versions, one folder per version
MAX_GROUP_DEPTH = 3  # folders of a group's name: latents/FAMILY/MODALITY
OPEN = ".open"  # folder in a group: open parts
LEASE = ".lease"  # which run may write, on shared storage
DAMAGED = "damaged"  # files that `openuni verify --repair` set aside, one folder per repair
PART_SUFFIX = ".parquet"
SHARD_SUFFIXES = (".tar", ".safetensors")


def filter_group(name: str) -> str:
    """The column group of a filter or deduplicator."""
    return f"{OPERATOR_FOLDERS['filter']}/{name}"


def annotation_group(name: str) -> str:
    """The column group of an annotator or importer."""
    return f"{OPERATOR_FOLDERS['annotator']}/{name}"


def operator_group(kind: str, name: str) -> str:
    """The column group of an operator; `kind`: "filter" or "annotator"."""
    return f"{OPERATOR_FOLDERS[kind]}/{name}"


def latent_group(family: str, modality: str) -> str:
    """The column group of one modality's latents in a latent family."""
    return f"{LATENTS}/{family}/{modality}"


def text_group(family: str) -> str:
    """The column group of a text family's embeddings."""
    return f"{TEXT}/{family}"


def family_record(kind: str, family: str) -> str:
    """The record of how a family was encoded; `kind`: LATENTS or TEXT."""
    return f"{kind}/{family}/family.json"


def prompts_record(family: str) -> str:
    """The embeddings of texts that belong to no clip, in a text family: the empty caption and modality prompts."""
    return f"{TEXT}/{family}/prompts.json"


def run_record(name: str) -> str:
    """The ledger of a pipeline run."""
    return f"{RUNS}/{name}.json"


def run_log(name: str) -> str:
    """The log of a run of the pipeline."""
    return f"{RUNS}/{name}.log"


def run_failures(name: str) -> str:
    """The failed items of a run with their tracebacks, one JSON object per line; absent if nothing failed."""
    return f"{RUNS}/{name}{FAILURES_SUFFIX}"


def superseded(group: str, version: str) -> str:
    """The folder for a group's parts of a superseded version."""
    return f"{group}/{SUPERSEDED}/{version}"


def set_aside(name: str, time: str) -> str:
    """Where a repair at `time` puts a damaged file."""
    return f"{DAMAGED}/{time}/{name}"


def in_folder(folder: str, name: str) -> str:
    """A file in a folder of the corpus, such as a shard of a column group."""
    return f"{folder}/{name}"


def visible_group(folder: str) -> str:
    """The column group of a folder of parts: itself, or the group whose superseded parts it holds."""
    return folder.partition(f"/{SUPERSEDED}/")[0]


def operator_of(group: str) -> str | None:
    """The operator whose struct column a group holds; None for groups with top-level columns."""
    folder, _, name = group.partition("/")
    return name if folder in OPERATOR_FOLDERS.values() else None
