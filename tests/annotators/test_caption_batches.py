"""Captions of several clips together, and by vLLM."""

import itertools
import sys

import numpy as np
import pytest
import torch

from openuni.annotators import _caption_vllm
from openuni.annotators._caption_transformers import ShownFrames
from openuni.annotators._caption_vllm import memory_share
from openuni.annotators.caption import Caption
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import ClipError, MissingRequirement, OpenUniError
from openuni.pipeline.clip_batches import ClipBatches, Waiting
from openuni.pipeline.planning.gpu_memory import VramMeter
from tests import vllm_signature
from tests.annotators.test_caption import tiny, tiny_checkpoint
from tests.command_line import cli


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("caption"))


@pytest.fixture
def loaded(checkpoint):
    return tiny(checkpoint).load("cpu")


def clip_of(seed, count=40, height_px=48, width_px=64):
    frames = np.random.default_rng(seed).integers(0, 256, (count, height_px, width_px, 3), dtype=np.uint8)
    return DecodedClip.from_frames(frames, 25.0)


# other lengths, sizes and proportions: other numbers of tokens
CLIPS = [clip_of(0), clip_of(1, 12), clip_of(2, 100), clip_of(3, 1), clip_of(4, 40, 64, 48), clip_of(5, 60, 96, 64)]
REFUSED = clip_of(6, 1, 4, 1200)


def test_clips_together_have_the_captions_that_each_has_alone_in_any_order(checkpoint, loaded):
    caption = tiny(checkpoint)
    alone = [caption.run(loaded, clip) for clip in CLIPS]
    assert len({found.brief for found in alone}) == len(CLIPS)
    excerpts = [caption.excerpt(loaded, clip) for clip in CLIPS]
    assert caption.run_batch(loaded, excerpts) == alone
    assert caption.run_batch(loaded, excerpts[::-1]) == alone[::-1]
    for one, other in itertools.permutations(range(3), 2):
        assert caption.run_batch(loaded, [excerpts[one], excerpts[other]]) == [alone[one], alone[other]]


def test_an_answer_that_ends_early_is_not_cut_by_longer_ones(checkpoint, loaded):
    network, processor = loaded
    caption = tiny(checkpoint)
    words = [processor.tokenizer(caption.run(loaded, clip).brief).input_ids for clip in CLIPS]
    network.generation_config.eos_token_id = [words[0][2], *np.atleast_1d(network.generation_config.eos_token_id)]
    alone = [caption.run(loaded, clip) for clip in CLIPS]
    assert {found.cut_short for found in alone} == {True, False} or len({len(f.brief) for f in alone}) > 1
    assert caption.run_batch(loaded, [caption.excerpt(loaded, clip) for clip in CLIPS]) == alone


def test_a_tokenizer_without_a_padding_token_batches_too(checkpoint, loaded):
    caption = tiny(checkpoint)
    alone = [caption.run(loaded, clip) for clip in CLIPS[:3]]
    loaded[1].tokenizer.pad_token = None
    assert caption.run_batch(loaded, [caption.excerpt(loaded, clip) for clip in CLIPS[:3]]) == alone


def test_images_batch_too(checkpoint, loaded):
    """Of models that take no videos."""
    loaded[1].video_processor = None
    caption = tiny(checkpoint)
    alone = [caption.run(loaded, clip) for clip in CLIPS[:4]]
    assert caption.run_batch(loaded, [caption.excerpt(loaded, clip) for clip in CLIPS[:4]]) == alone


def together(caption, model, clips):
    """What the worker makes of clips that are processed together."""
    batches = ClipBatches({"caption": caption}, {"caption": model}, VramMeter("cpu"))
    excerpts = [caption.excerpt(model, clip) for clip in clips]
    batches.waiting = [Waiting(None, {"caption": excerpt}, {"caption": 0.0}) for excerpt in excerpts]
    return [found["caption"] for _, found in batches.run()], batches


def test_a_clip_that_the_processor_refuses_fails_alone(checkpoint, loaded):
    caption = tiny(checkpoint, batch_clips=4)
    clips = [CLIPS[0], REFUSED, CLIPS[1], CLIPS[2]]
    found, _ = together(caption, loaded, clips)
    assert [result.error is None for result in found] == [True, False, True, True]
    assert isinstance(found[1].error, ClipError) and "rejects 1 frames of 1200 x 4 px" in str(found[1].error)
    assert [found[place].value for place in (0, 2, 3)] == [caption.run(loaded, clips[place]) for place in (0, 2, 3)]


def test_out_of_memory_halves_the_batch(checkpoint, loaded):
    network, _ = loaded
    generate, sizes = network.generate, []

    def limited(**inputs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(**inputs)

    network.generate = limited
    caption = tiny(checkpoint, batch_clips=5)
    found, batches = together(caption, loaded, CLIPS[:5])
    network.generate = generate
    assert [result.value for result in found] == [caption.run(loaded, clip) for clip in CLIPS[:5]]
    assert batches.sizes == {"caption": 1 if 3 in sizes else 2}
    assert max(sizes) == 5


def test_only_the_frames_shown_are_kept():
    clip = clip_of(7, 250)
    kept = Caption(max_frames=4).excerpt(None, clip)
    assert kept.frames.base is None and kept.frames.shape == (4, 48, 64, 3)


# ---------------------------------------------------------------------- options


def test_how_it_is_computed_is_not_part_of_the_version_but_the_library_is(checkpoint):
    plain = tiny(checkpoint)
    assert tiny(checkpoint, batch_clips=16).version() == plain.version()
    vllm = tiny(checkpoint, backend="vllm")
    assert vllm.version() != plain.version()
    spread = tiny(checkpoint, backend="vllm", tensor_parallel_size=4, gpu_memory_share=0.5, context_tokens=8192)
    assert spread.version() == vllm.version()
    assert (plain.gpus_per_worker(), spread.gpus_per_worker()) == (1.0, 4.0)
    assert (plain.clips_per_batch(), vllm.clips_per_batch(), tiny(checkpoint, batch_clips=9).clips_per_batch()) == (
        1,
        64,
        9,
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"backend": "vlm"},
        {"batch_clips": -1},
        {"tensor_parallel_size": 2},
        {"context_tokens": 4096},
        {"gpu_memory_share": 0.5},
        {"backend": "vllm", "gpu_memory_share": 1.5},
        {"backend": "vllm", "tensor_parallel_size": 0},
        {"backend": "vllm", "precision": "tf32"},
        {"precision": "float32"},
    ],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(OpenUniError, match="Allowed"):
        Caption(**wrong)


# ---------------------------------------------------------------------- vLLM


@pytest.fixture
def vllm(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", vllm_signature)
    monkeypatch.setattr(vllm_signature, "started", [])
    return vllm_signature


def by_vllm(checkpoint, **options):
    caption = tiny(
        checkpoint, backend="vllm", brief_prompt="What is there?", detailed_prompt="What happens?", **options
    )
    return caption, caption.load("cpu")


def test_vllm_is_asked_for_greedy_answers_about_all_clips_at_once(checkpoint, vllm):
    caption, model = by_vllm(checkpoint)
    found = caption.run_batch(model, [caption.excerpt(model, clip) for clip in CLIPS[:3]])
    assert [(one.brief, one.detailed, one.cut_short) for one in found] == 3 * [
        ("What is there?", "What happens?", False)
    ]
    (engine,) = vllm.started
    assert engine.arguments == {
        "model": checkpoint,
        "trust_remote_code": False,
        "tensor_parallel_size": 1,
        "dtype": "float32",
        "seed": 0,
        "gpu_memory_utilization": 0.9,
        "limit_mm_per_prompt": {"video": 1, "image": 0},
        "max_model_len": None,
        "distributed_executor_backend": None,
    }
    assert [len(batch) for batch in engine.batches] == [3, 3]
    request = engine.batches[0][0]
    assert request["prompt"].startswith("<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>What is there?")
    ((frames, facts),) = request["multi_modal_data"]["video"]
    assert np.array_equal(frames, CLIPS[0].frames[[0, 13, 25, 38]])
    assert facts["frames_indices"] == [0, 13, 25, 38] and facts["fps"] == 25.0 and not facts["do_sample_frames"]


def test_vllm_answers_at_the_maximum_length_are_cut(checkpoint, vllm):
    caption, model = by_vllm(checkpoint, max_new_tokens=2)
    assert caption.run(model, CLIPS[0]).cut_short
    assert caption.run(model, CLIPS[0]).brief == "What is"


def test_vllm_is_given_images_by_models_that_take_no_videos(checkpoint, vllm, monkeypatch):
    monkeypatch.setattr(_caption_vllm, "takes_videos", lambda processor: False)
    caption, model = by_vllm(checkpoint, max_frames=3)
    caption.run(model, CLIPS[2])
    (engine,) = vllm.started
    assert engine.arguments["limit_mm_per_prompt"] == {"image": 3}
    assert [image.size for image in engine.batches[0][0]["multi_modal_data"]["image"]] == 3 * [(64, 48)]


def test_vllm_gets_the_gpus_and_the_memory_of_the_options(checkpoint, vllm, monkeypatch):
    _ = by_vllm(checkpoint, tensor_parallel_size=2, gpu_memory_share=0.4, context_tokens=4096, precision="bf16")
    given = vllm.started[-1].arguments
    assert (given["tensor_parallel_size"], given["gpu_memory_utilization"], given["max_model_len"]) == (2, 0.4, 4096)
    assert (given["dtype"], given["distributed_executor_backend"]) == ("bfloat16", "mp")


@pytest.mark.parametrize(("reserved", "share"), [("", 0.9), ("1", 0.9), ("0.5", 0.45), ("4", 0.9)])
def test_the_share_of_memory_is_that_of_the_workers_share_of_the_gpu(reserved, share, monkeypatch):
    if reserved:
        monkeypatch.setenv("OPENUNI_GPUS", reserved)
    assert memory_share(0.0) == pytest.approx(share)
    assert memory_share(0.3) == 0.3


def test_an_engine_that_died_is_started_again_and_the_clip_it_died_of_fails_alone(checkpoint, vllm):
    caption, model = by_vllm(checkpoint)
    vllm.started[0].dies = True
    found, _ = together(caption, model, CLIPS[:3])
    assert len(vllm.started) == 2
    assert [result.error for result in found] == [None, None, None]
    model.engine.dies = True
    found, _ = together(caption, model, CLIPS[:1])
    assert type(found[0].error).__name__ == "EngineDeadError"
    assert caption.run(model, CLIPS[0]).brief


def test_a_clip_that_vllm_rejects_fails_alone(checkpoint, vllm, monkeypatch):
    monkeypatch.setattr(_caption_vllm, "takes_videos", lambda processor: False)
    caption, model = by_vllm(checkpoint, max_frames=1)
    clips = [ShownFrames.of(CLIPS[0], np.array([0])), ShownFrames.of(CLIPS[0], np.array([0, 9]))]
    batches = ClipBatches({"caption": caption}, {"caption": model}, VramMeter("cpu"))
    batches.waiting = [Waiting(None, {"caption": one}, {"caption": 0.0}) for one in clips]
    first, second = [found["caption"] for _, found in batches.run()]
    assert first.error is None and "At most 1 image(s)" in str(second.error)


def test_without_vllm_nothing_starts_and_the_message_says_what_to_install(checkpoint, tmp_path):
    if "vllm" in sys.modules or _has_vllm():
        pytest.skip("vLLM is installed")
    with pytest.raises(MissingRequirement, match=r"pip install 'openuni\[vllm\]'.*backend = \"transformers\""):
        tiny(checkpoint, backend="vllm").load("cpu")
    recipe = tmp_path / "r.toml"
    recipe.write_text(f'[annotators.caption]\ncheckpoint = "{checkpoint}"\nbackend = "vllm"\n')
    done = cli("doctor", recipe)
    assert done.returncode != 3 and "pip install 'openuni[vllm]'" in done.stdout + done.stderr
    (tmp_path / "raw").mkdir()
    from tests.raw_clips import write_clips

    write_clips(tmp_path / "raw", 1)
    done = cli("run", recipe, tmp_path / "raw", "--out", tmp_path / "c", "--workers", 0)
    assert done.returncode == 2 and "pip install 'openuni[vllm]'" in done.stderr


def _has_vllm():
    from importlib.util import find_spec

    return find_spec("vllm") is not None
