"""`openuni verify`: verification of a corpus or a training run, and repair."""

import math
import os
from contextlib import nullcontext
from pathlib import Path

from openuni.console.progress import Reporter
from openuni.manifests.corpus.corpus import Corpus
from openuni.manifests.corpus.layout import CLIPS, CORPUS_RECORD
from openuni.manifests.errors import OpenUniError
from openuni.manifests.storage.lock import lock
from openuni.manifests.storage.remote_errors import remote_errors
from openuni.manifests.storage.store import Store
from openuni.report.verify_corpus import CorpusVerification
from openuni.report.verify_repair import Repair, finish_interrupted
from openuni.report.verify_report import VerifyReport
from openuni.report.verify_run import verify_run
from openuni.training.run_files import RUN_FILE, STATE_FILE

MAX_DEFAULT_WORKERS = 8


@remote_errors()
def verify(
    path: str | Path | Corpus,
    sample: float | None = None,
    *,
    repair: bool = False,
    workers: int | None = None,
    seed: int | None = None,
    reporter: Reporter | None = None,
) -> VerifyReport:
    """Verify the checksums of a corpus (folder or URL) or a training run (folder).

    `sample`: verify a random sample of a corpus's payloads only: a fraction (below 1) or a number of payloads; records,
    Parquet parts and references are always verified. `repair`: move what is damaged to the folder `damaged/TIME/`, so
    that the next run recomputes exactly that. `workers`: number of threads; default one per core, up to 8. `seed`:
    random seed of the sample. Raises `OpenUniError` if the path is neither a corpus nor a training run; damage raises
    nothing, see `VerifyReport.damage`.
    """
    _check_sample(sample)
    if workers is not None and workers < 1:
        raise OpenUniError(f"--workers {workers}: must be at least 1")
    store = Store(path.store.url if isinstance(path, Corpus) else str(path))
    is_corpus = store.exists(CORPUS_RECORD) or bool(store.names(CLIPS, ".parquet"))
    is_run = store.is_local and (store.exists(RUN_FILE) or any(Path(store.root).glob(f"step-*/{STATE_FILE}")))
    if not is_corpus and not is_run:
        raise OpenUniError(
            f"{store.url} is neither a corpus (corpus.json not found) nor a training run ({RUN_FILE} not found)"
        )
    with reporter or Reporter() as shown:
        if not is_corpus:
            if sample is not None:
                raise OpenUniError("--sample is for a corpus; a training run is always verified whole")
            return verify_run(Path(store.root), shown, repair=repair)
        threads = workers or min(os.cpu_count() or 1, MAX_DEFAULT_WORKERS)
        with lock(store) if repair else nullcontext():
            found = CorpusVerification(store, shown, threads, seed).run(sample)
            if repair:
                finish_interrupted(found)
            if repair and found.damage:
                found = Repair(found).run()
        return found.report()


def _check_sample(sample: float | None) -> None:
    if sample is None:
        return
    is_number = not isinstance(sample, bool) and isinstance(sample, int | float) and math.isfinite(sample)
    if not is_number or sample <= 0 or (sample >= 1 and sample != int(sample)):
        raise OpenUniError(
            f"--sample {sample}: must be a fraction of the payloads above 0 and below 1, or a number of payloads"
        )
