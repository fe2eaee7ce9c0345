"""Where things lie in a corpus: the only place that builds paths inside one.

A column group's name is its folder: `clips`, `filters/NAME`, `annotations/NAME`, `latents/FAMILY/MODALITY`,
`text/FAMILY`. Its Parquet parts and the shards they point into lie side by side in that folder.
"""

CORPUS_RECORD = "corpus.json"
CLIPS = "clips"
LATENTS = "latents"
TEXT = "text"
RUNS = "runs"  # one ledger per run, named by its time
OPERATOR_FOLDERS = {"filter": "filters", "annotator": "annotations"}
SUPERSEDED = "superseded"  # folder within a group: parts of other versions, by version
OPEN = ".open"  # folder within a group: parts that are being written


def filter_group(name: str) -> str:
    """The column group of a filter or deduplicator."""
    return f"{OPERATOR_FOLDERS['filter']}/{name}"


def annotation_group(name: str) -> str:
    """The column group of an annotator or importer."""
    return f"{OPERATOR_FOLDERS['annotator']}/{name}"


def operator_group(kind: str, name: str) -> str:
    """The column group of an operator of a kind: "filter" or "annotator"."""
    return f"{OPERATOR_FOLDERS[kind]}/{name}"


def latent_group(family: str, modality: str) -> str:
    """The column group of one modality's latents in a latent family."""
    return f"{LATENTS}/{family}/{modality}"


def text_group(family: str) -> str:
    """The column group of a text family's embeddings."""
    return f"{TEXT}/{family}"


def family_record(kind: str, family: str) -> str:
    """The file that says how a family was encoded; `kind`: LATENTS or TEXT."""
    return f"{kind}/{family}/family.json"


def run_record(name: str) -> str:
    """The ledger of a run of the pipeline."""
    return f"{RUNS}/{name}.json"


def superseded(group: str, version: str) -> str:
    """Where a group's parts of another version are set aside."""
    return f"{group}/{SUPERSEDED}/{version}"


def operator_of(group: str) -> str | None:
    """The operator whose struct column a group holds; None for groups whose columns are flat."""
    folder, _, name = group.partition("/")
    return name if folder in OPERATOR_FOLDERS.values() else None
