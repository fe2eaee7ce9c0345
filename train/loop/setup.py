"""Setup of a training run: consistency checks of recipe, corpus and output folder before the first step."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from openuni.manifests.contracts.discovery import find_component
from openuni.manifests.contracts.modality import find_modality
from openuni.manifests.contracts.options import former_names
from openuni.manifests.contracts.parsing import parse_options
from openuni.manifests.corpus.layout import latent_group
from openuni.manifests.errors import OpenUniError
from openuni.training.data.captions import Captions, open_captions
from openuni.training.data.curriculum import Curriculum, all_collections, curriculum_stages
from openuni.training.data.fixed_texts import EMPTY, FixedTexts, fixed_rows, stored_prompts
from openuni.training.data.index import Index, choose_family
from openuni.training.data.index_cache import IndexCache
from openuni.training.data.plan import clips_by_task, usable_clips
from openuni.training.data.requirements import check_captions, check_one_codec, warn_of_unused_tasks
from openuni.training.data.subjects import check_subjects, open_subjects
from openuni.training.data.tokenizer import Tokenizer, make_tokenizer, tokenizer_identity
from openuni.training.loop.context_checks import check_tokens, checked_context
from openuni.training.loop.ranks import Ranks
from openuni.training.loop.training_checkpoint import list_checkpoints
from openuni.training.model import Model
from openuni.training.recipe import TextStreamOptions, TrainingRecipe
from openuni.training.run_files import INDEX_FILE, RUN_FILE, SUBJECTS_FILE, TEXTS_FILE
from openuni.training.run_record import FORMAT, read_record, unrecorded_options, write_record
from openuni.training.tasks import TaskMix
from openuni.training.tracker import parse_tracker

if TYPE_CHECKING:
    from openuni.manifests.corpus.corpus import Corpus

# Options that may change on resume, as they do not affect finished steps. By their names in run.json, which keeps the
# former names of renamed options (see `recorded`).
RESUME_MUTABLE = (
    *("checkpoints.", "validation.", "samples", "tracking", "log_every_steps", "watchdog_s", "peak_tflops"),
    *("optimizer.accumulate", "optimizer.reduce_every_micro_batch", "optimizer.offload_state"),
    *("context_parallel", "data.max_skipped_samples"),
    "data.fps",  # runs of version 0.1 lack it
    *("model.attention", "model.compile", "model.gradient_checkpointing"),
)


@dataclass(frozen=True, eq=False)
class Setup:
    """Validated inputs of a trainer."""

    recipe: TrainingRecipe
    corpus: "Corpus"
    model: Model
    mix: TaskMix  # averaged over all stages
    plan: Curriculum
    index: Index
    texts: FixedTexts
    record: dict[str, Any]  # run.json
    tokenizer: Tokenizer | None = None  # for models that generate text


def prepare_on(ranks: Ranks, recipe: TrainingRecipe, corpus: "Corpus", folder: Path) -> Setup:
    """`prepare` on all ranks. Raises `OpenUniError` if they differ, or if samples cannot be divided among them."""
    try:
        ranks.context_size = checked_context(recipe, ranks.world, "processes")
    except OpenUniError as raised:
        raise ranks.agreed(raised) from None
    first = ranks.first(lambda: prepare(recipe, corpus, folder))

    def follow() -> Setup:
        if not (folder / RUN_FILE).is_file():
            raise OpenUniError(f"{folder} is not there: --out must be on a file system that all nodes share.")
        return prepare(recipe, corpus, folder)  # finds the same record, and writes nothing

    setup = ranks.together(lambda: first if first is not None else follow())
    odd = ranks.differing(xxhash.xxh3_64_hexdigest(json.dumps(setup.record, sort_keys=True).encode()))
    if odd:
        error = OpenUniError(
            f"rank {odd[0]} has another recipe or corpus than rank 0. Start all processes with the same command, on "
            "files that all nodes share."
        )
        raise ranks.agreed(error)
    return setup


def prepare(recipe: TrainingRecipe, corpus: "Corpus", folder: Path) -> Setup:
    """Check all inputs and write run.json. Raises `OpenUniError` with the reason and the remedy."""
    parse_tracker(recipe.tracking)  # raises for one that cannot be used
    latents = _family("latent", corpus.families(), recipe.data.latents)
    text = _family("text", corpus.text_families(), recipe.data.text)
    base: Any = Model
    kind = find_component("models", base, recipe.model["name"], imports=True)
    options = {key: value for key, value in recipe.model.items() if key != "name"}
    modalities = _modalities(options.get("modalities"), kind, latents)
    stages = curriculum_stages(recipe, modalities)
    mix = TaskMix.averaged([stage.mix for stage in stages])
    tokenizer = _tokenizer(kind, recipe, mix)
    data = recipe.data
    cache = IndexCache(
        *(folder / INDEX_FILE, corpus, modalities, data.latents, data.text, data.validation_share),
        collections=all_collections(stages),
    )
    index = cache.open()
    if tokenizer is not None:
        captions = open_captions(corpus, index.clip_ids, text.get("caption", ""), recipe.text, tokenizer)
        _check_texts(captions, mix, recipe.text)
        index = dataclasses.replace(index, captions=captions)
    plan = Curriculum.build(index, stages, recipe.seed, recipe.optimizer.batch_size)  # raises without training clips
    check_one_codec(index, mix)
    shape = _most_common_shape(index, mix)
    if "buckets" in latents:
        latents |= _bucket_of(corpus, index, shape)
    folder.mkdir(parents=True, exist_ok=True)
    rows = fixed_rows(text, modalities, folder / TEXTS_FILE, stored_prompts(corpus, text["family"]))
    subjects = open_subjects(corpus, data.subjects, index.clip_ids, text, folder / SUBJECTS_FILE)
    index = dataclasses.replace(index, subjects=subjects)
    before = read_record(folder) if list_checkpoints(folder) else None
    if before is not None and before["model"]["name"] == kind.name():
        options = unrecorded_options(kind, before["model"]["options"]) | options
    model = _model(kind, options, modalities, shape[0], rows[EMPTY].shape[1], tokenizer)
    check_fit(model, index, mix, latents["codec"])
    check_subjects(data.subjects, model, mix)
    check_tokens(recipe, model, index, mix)
    check_captions(index, model, mix, recipe, resumes=before is not None)
    record: dict[str, Any] = {
        "format": FORMAT,
        "recipe": _recorded_recipe(recipe, kind),
        "model": {"name": kind.name(), "options": model.resolved().machine_independent().options_dict()},
        "latents": latents,
        "text": text,
        "text_length": _text_length(recipe, index, rows),
        "latent_shape": shape,
        "data": {
            "digest": index.digest(),
            **_clip_counts(index),
            "clips_by_task": clips_by_task(index, mix),
            # families without a rate of their own have that of their clips
            "fps": latents.get("fps")
            or _typical_fps(corpus, pa.array(index.clip_ids, pa.string()).filter(pa.array(usable_clips(index, mix)))),
        }
        | ({"stages": plan.summary(index)} if len(stages) > 1 else {}),
    }
    if tokenizer is not None and index.captions is not None:
        record["tokens"] = tokenizer_identity(tokenizer)
        record["data"]["captions"] = index.captions.counts
    record = json.loads(json.dumps(record))
    if before is not None:
        _check_resume(record, before, kind, folder)
    write_record(folder, record)
    warn_of_unused_tasks(record["data"]["clips_by_task"])
    cache.save()
    return Setup(recipe, corpus, model, mix, plan, index, FixedTexts(rows, record["text_length"]), record, tokenizer)


def _recorded_recipe(recipe: TrainingRecipe, kind: type[Model]) -> dict[str, Any]:
    """The recipe for run.json, with renamed model options under their former names, so that earlier runs resume."""
    former = former_names(kind)
    tables = recipe.to_dict()
    return tables | {"model": {former.get(name, name): value for name, value in tables["model"].items()}}


def _tokenizer(kind: type[Model], recipe: TrainingRecipe, mix: TaskMix) -> Tokenizer | None:
    """Tokenizer of a model that generates text. Raises `OpenUniError` if only the recipe expects text."""
    if kind.generates_text:
        return make_tokenizer(recipe.text)
    if textual := [str(task) for task in mix.tasks if task.generates_text]:
        raise OpenUniError(
            f"tasks {', '.join(textual)} generate text, which {kind.name()} does not support. Choose other tasks, or "
            'a model with text generation, such as model.name = "univigu".'
        )
    if recipe.text != TextStreamOptions():
        raise OpenUniError(
            f"the recipe has a [text] section, but {kind.name()} does not generate text. Remove the section."
        )
    return None


def _family(kind: str, families: dict[str, dict[str, Any]], wanted: str) -> dict[str, Any]:
    name = choose_family(kind, families, wanted)
    return families[name] | {"family": name}


def _modalities(listed: Any, kind: type[Model], latents: dict[str, Any]) -> tuple[str, ...]:
    """Modalities of the recipe, else of the model, else of the corpus."""
    if listed is None:
        found = kind.supported_modalities or tuple(
            sorted(latents["modalities"], key=lambda name: (name != "rgb", name))
        )
        if not found:
            raise OpenUniError(
                f"latent family {latents['family']} has no modalities: nothing was encoded. Run the pipeline with an "
                "[encode] section on clips that pass its keep rule."
            )
        return found
    if not isinstance(listed, list | tuple) or not listed:
        raise OpenUniError(f'recipe: model.modalities must be a list of names such as ["rgb", "depth"], got {listed!r}')
    for name in listed:
        find_modality(str(name))
    return tuple(listed)


def _most_common_shape(index: Index, mix: TaskMix) -> list[int]:
    """Most common latent shape [C, T, H, W]."""
    shapes, counts = np.unique(index.shapes[usable_clips(index, mix)], axis=0, return_counts=True)
    return shapes[counts.argmax()].tolist()


def _bucket_of(corpus: "Corpus", index: Index, shape: list[int]) -> dict[str, Any]:
    """Size and number of frames of the videos behind the latents of a shape, as the trained default of sampling."""
    for name, extents in index.latents.items():
        found = np.flatnonzero(extents.present & (extents.shape == shape).all(axis=1))
        row = corpus.find(latent_group(index.latent_family, name), index.clip_ids[found[0]]) if len(found) else None
        if row is not None and all(row.get(key) for key in ("height_px", "width_px", "frames")):
            return {"size_px": [row["height_px"], row["width_px"]], "frames": row["frames"]}
    raise OpenUniError(f"no latents of shape {shape} have frames, height_px and width_px. Re-encode the corpus.")


def _clip_counts(index: Index) -> dict[str, int]:
    """Clips, those held out, and of families with windows the number of samples, for run.json."""
    if index.window is None:
        return {"clips": len(index.clip_ids), "held_out": int(index.held_out.sum())}
    first = index.window == 0
    counts = {"clips": int(first.sum()), "held_out": int((index.held_out & first).sum())}
    return counts | {"windows": len(index.clip_ids), "held_out_windows": int(index.held_out.sum())}


def _typical_fps(corpus: "Corpus", clip_ids: pa.Array) -> float | None:
    """Median frame rate of the clips, one that occurs; None if the corpus does not state any."""
    table = corpus.table("clips", ["clip_id", "fps"])
    rates = table.filter(pc.is_in(table.column("clip_id"), value_set=clip_ids)).column("fps")
    known = rates.drop_null().to_numpy()
    return float(np.quantile(known, 0.5, method="lower")) if len(known) else None


def _check_texts(captions: Captions, mix: TaskMix, options: TextStreamOptions) -> None:
    """Raise `OpenUniError` if text is a target, but no clip has a usable text."""
    textual = [str(task) for task in mix.tasks if task.generates_text]
    if captions.fits.any() or not textual:
        return
    wanted = f"at most {options.length - 1}"
    if options.stage == "refinement":
        brief, detailed = (f"{least} to {most}" for least, most in (options.brief_tokens, options.detailed_tokens))
        wanted = f"{brief} in the prompt, {detailed} and {wanted} in the detailed caption"
    raise OpenUniError(
        f"no clip has a usable target text for tasks {', '.join(textual)}: {captions.counts['with_text']} clips have "
        f"one, none with the number of {options.tokenizer} tokens that [text] requires ({wanted}). Change "
        "text.length, text.brief_tokens or text.detailed_tokens, or the captions."
    )


def _model(
    kind: type[Model],
    options: dict[str, Any],
    modalities: tuple[str, ...],
    channels: int,
    text_dim: int,
    tokenizer: Tokenizer | None,
) -> Model:
    """The model component; options missing in the recipe are taken from the corpus."""
    known = {option.name for option in kind.options()}
    from_corpus: dict[str, Any] = {"modalities": modalities}
    if not options.get("pretrained"):
        from_corpus |= {"channels": channels, "text_dim": text_dim}
    if tokenizer is not None:
        from_corpus["vocabulary"] = tokenizer.vocabulary
    given = {key: value for key, value in from_corpus.items() if key in known} | options
    model: Model = parse_options(kind, given, kind.name())
    found = model.resolved().options_dict()
    for name, value, what in (("channels", channels, "latents"), ("text_dim", text_dim, "text embeddings")):
        if found.get(name, value) != value:
            raise OpenUniError(
                f"the model has {name} = {found[name]}, but the corpus's {what} have {value}. "
                f"Remove model.{name}, choose another family in [data], or encode with the model's codec."
            )
    if tokenizer is not None and found["vocabulary"] != tokenizer.vocabulary:
        raise OpenUniError(
            f"the model has vocabulary = {found['vocabulary']}, but the tokenizer of [text] has "
            f"{tokenizer.vocabulary} values, including the mask. Remove model.vocabulary, or change text.tokenizer."
        )
    return model


def check_fit(model: Model, index: Index, mix: TaskMix, codec: str) -> None:
    """Raise `OpenUniError` if latents are not multiples of the model's patch."""
    patch = model.resolved().options_dict().get("patch", (1, 1, 1))
    shapes = index.shapes[usable_clips(index, mix)]
    odd = (shapes[:, 1:] % np.array(patch)).any(axis=1)
    if odd.any():
        raise OpenUniError(
            f"{int(odd.sum())} clips have {codec} latents such as {shapes[odd][0].tolist()}: frames, rows and columns "
            f"must be multiples of the model's patch {list(patch)}. Encode at another size_px, or change model.patch."
        )


def _text_length(recipe: TrainingRecipe, index: Index, rows: dict[str, Any]) -> int:
    fixed = max(len(row) for row in rows.values())
    subject = index.subjects.longest if index.subjects is not None else 0
    longest = max(int(index.text.shape[:, 0].max(initial=0)), fixed + subject)
    if recipe.data.text_length and recipe.data.text_length < longest:
        raise OpenUniError(
            f"data.text_length is {recipe.data.text_length}, but the longest text has {longest} rows. Set it to "
            f"at least {longest}, or to 0."
        )
    return recipe.data.text_length or longest


def _check_resume(record: dict[str, Any], before: dict[str, Any], kind: type[Model], folder: Path) -> None:
    """Raise `OpenUniError` if the settings differ from those that the run in `folder` was started with.

    `before`: its record. Fewer steps than finished are rejected, too.
    """
    # parsed and written again: this adds the defaults of options that are newer than the run
    recipe = TrainingRecipe.from_dict(before["recipe"], RUN_FILE, quiet=True)
    options = unrecorded_options(kind, before["model"]["options"]) | before["model"]["options"]
    before = before | {
        "recipe": json.loads(json.dumps(recipe.to_dict())),
        "model": before["model"] | {"options": options},
    }
    steps_matter = record["recipe"]["optimizer"]["decay_steps"] > 0
    changes = [
        f"{name}: {_shown(old)} -> {_shown(new)}"
        for name, old, new in _differences(before, record)
        if not name.removeprefix("recipe.").startswith(RESUME_MUTABLE)
        and not (name == "recipe.optimizer.steps" and not steps_matter)
    ]
    if changes:
        raise OpenUniError(
            f"{folder} contains a run with different settings:\n  " + "\n  ".join(changes) + "\n"
            "Restore them to resume; or pass another --out, and set init_from to this run to use its weights."
        )
    steps, done = record["recipe"]["optimizer"]["steps"], list_checkpoints(folder)[-1].step
    if steps < done:
        raise OpenUniError(
            f"optimizer.steps = {steps}, but {folder} has already finished {done} steps. Set it to at least {done}, or "
            "pass another --out to train from the start."
        )


def _shown(value: Any) -> str:
    """An option's value; records leave out newer options at their defaults."""
    return "default" if value is None else repr(value)


def _differences(before: Any, after: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            yield from _differences(before.get(key), after.get(key), f"{name}.{key}" if name else key)
    elif before != after:
        yield name, before, after
