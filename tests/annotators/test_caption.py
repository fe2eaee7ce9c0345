import hashlib

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from openuni.annotators._caption_transformers import ShownFrames
from openuni.annotators._caption_transformers import build_inputs as batch_inputs
from openuni.annotators.caption import BRIEF, DETAILED, Caption
from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.errors import ClipError, MissingRequirement, OpenUniError
from tests.moving_pictures import panned

SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer():
    """Every byte is a token; no merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    plain.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def tiny_checkpoint(folder, template=TEMPLATE):
    """Qwen2.5-VL in transformers' format: the real classes, two narrow layers, random weights."""
    path = folder / f"tiny-{'chat' if template else 'mute'}"
    if path.exists():
        return str(path)
    tokens = tokenizer()
    number = dict(zip(SPECIAL, tokens.convert_tokens_to_ids(list(SPECIAL)), strict=True))
    text = {
        "vocab_size": len(tokens),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": None,
        "eos_token_id": number["<|im_end|>"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
        "window_size": 56,
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=number["<|image_pad|>"],
        video_token_id=number["<|video_pad|>"],
        vision_start_token_id=number["<|vision_start|>"],
        vision_end_token_id=number["<|vision_end|>"],
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Qwen2_5_VLForConditionalGeneration(config)
        for value in network.parameters():
            if value.ndim > 1:
                torch.nn.init.normal_(value, 0, 0.3)
        network.lm_head.weight.data[max(number.values()) - len(SPECIAL) + 1 :] = 0  # says letters, and never stops
    network.generation_config = GenerationConfig(
        eos_token_id=number["<|im_end|>"], pad_token_id=number["<|endoftext|>"], do_sample=True, temperature=0.9
    )
    network.save_pretrained(path)
    size = {"shortest_edge": 56 * 56, "longest_edge": 84 * 84}
    pictures, videos = Qwen2VLImageProcessor(size=size), Qwen2VLVideoProcessor(size=size)
    Qwen2_5_VLProcessor(pictures, tokens, videos, chat_template=template).save_pretrained(path)
    return str(path)


def tiny(checkpoint, **options):
    return Caption(checkpoint=checkpoint, **({"max_new_tokens": 12, "precision": "fp32"} | options))


def build_inputs(processor, clip, indices, prompt):
    return batch_inputs(processor, [ShownFrames.of(clip, indices)], prompt)


def contract_case(folder, frames):
    """What tests/test_every_operator.py runs: random weights in the library's own format."""
    return tiny(tiny_checkpoint(folder)), DecodedClip.from_frames(frames)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("caption"))


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return tiny(checkpoint).load("cpu")


def clip_of(count=40, fps=25.0, height_px=48, width_px=64):
    frames = np.random.default_rng(0).integers(0, 256, (count, height_px, width_px, 3), dtype=np.uint8)
    return DecodedClip.from_frames(frames, fps)


def test_both_captions_are_the_models_greedy_answers(checkpoint, loaded):
    network, processor = loaded
    clip = clip_of()
    found = tiny(checkpoint).run(loaded, clip)
    for text, prompt in ((found.brief, BRIEF), (found.detailed, DETAILED)):
        tokens = build_inputs(processor, clip, np.array([0, 13, 25, 38]), prompt)
        start = tokens["input_ids"].shape[1]
        with torch.no_grad():  # the most likely token each time, without a cache, written out
            for _ in range(12):
                scores = network(**{key: value for key, value in tokens.items()}).logits[0, -1]
                chosen = scores.argmax().reshape(1, 1)
                tokens["input_ids"] = torch.cat([tokens["input_ids"], chosen], dim=1)
                tokens["attention_mask"] = torch.ones_like(tokens["input_ids"])
                tokens["mm_token_type_ids"] = torch.nn.functional.pad(tokens["mm_token_type_ids"], (0, 1))
        by_hand = processor.tokenizer.decode(tokens["input_ids"][0, start:], skip_special_tokens=True)
        assert text == " ".join(by_hand.split()) and len(text) > 3
    assert found.brief != found.detailed
    assert found.cut_short and found.source == "model" and found.model == checkpoint
    assert found.frame_times_s == [0.0, 0.52, 1.0, 1.52]
    assert found.prompt_hash == hashlib.sha256(f"{BRIEF}\0{DETAILED}".encode()).hexdigest()[:16]


def test_other_pictures_and_other_prompts_give_other_captions(checkpoint, loaded):
    first = tiny(checkpoint).run(loaded, clip_of())
    dark = DecodedClip.from_frames(np.zeros((40, 48, 64, 3), np.uint8))
    assert tiny(checkpoint).run(loaded, dark).brief != first.brief
    asked = tiny(checkpoint, brief_prompt="Who is there?").run(loaded, clip_of())
    assert asked.prompt_hash != first.prompt_hash and asked.brief != first.brief
    assert asked.detailed == first.detailed
    assert tiny(checkpoint, brief_prompt="Who?").version() != tiny(checkpoint).version()


def test_the_model_is_shown_the_frames_chosen_and_their_pace(loaded):
    _, processor = loaded
    clip = clip_of(count=50, fps=25.0)
    indices = np.array([0, 12, 25, 37])
    inputs = build_inputs(processor, clip, indices, "What?")
    text = processor.tokenizer.decode(inputs["input_ids"][0])
    assert text.startswith("<|im_start|>user\n<|vision_start|><|video_pad|>")
    assert text.endswith("What?<|im_end|>\n<|im_start|>assistant\n")
    alone = processor.video_processor(
        [torch.from_numpy(clip.frames[indices].copy()).permute(0, 3, 1, 2)], return_tensors="pt"
    )
    assert torch.equal(inputs["pixel_values_videos"], alone["pixel_values_videos"])
    assert inputs["second_per_grid_ts"].tolist() == [pytest.approx(2 * 50 / 4 / 25)]  # two frames per cell of the grid


def test_a_model_that_knows_no_videos_is_shown_pictures(loaded):
    _, processor = loaded
    videos, processor.video_processor = processor.video_processor, None
    try:
        inputs = build_inputs(processor, clip_of(), np.array([0, 20, 39]), "What?")
    finally:
        processor.video_processor = videos
    assert "pixel_values_videos" not in inputs and len(inputs["image_grid_thw"]) == 3


def test_which_frames_are_shown():
    even = np.arange(250) / 25  # ten seconds
    assert Caption(frames_per_s=1).select_frames(even).tolist() == list(range(0, 250, 25))
    assert Caption(frames_per_s=2, max_frames=4).select_frames(even).tolist() == [0, 83, 166, 249]
    assert Caption(frames_per_s=0, max_frames=3).select_frames(even[:9]).tolist() == [0, 4, 8]
    assert Caption(frames_per_s=0, max_frames=16).select_frames(even[:3]).tolist() == [0, 1, 2]
    assert Caption(max_frames=1).select_frames(even).tolist() == [0]
    uneven = np.array([0.0, 0.1, 0.2, 0.3, 9.0, 10.0])  # by time, not by number
    assert Caption(frames_per_s=0, max_frames=3).select_frames(uneven).tolist() == [0, 4, 5]


def test_one_frame_and_an_answer_that_ends_by_itself(tmp_path):
    path = tiny_checkpoint(tmp_path)
    network, processor = tiny(path).load("cpu")
    network.generation_config.eos_token_id = list(range(len(processor.tokenizer)))  # the first word is the last
    found = tiny(path).run((network, processor), clip_of(count=1))
    assert found.frame_times_s == [0.0] and not found.cut_short
    network.generation_config.suppress_tokens = list(range(256))  # all letters
    silent = tiny(path).run((network, processor), clip_of(count=1))
    assert silent.brief is None and silent.detailed is None


def test_bf16_holds_its_weights_in_16_bits(checkpoint):
    network, processor = tiny(checkpoint, precision="bf16").load("cpu")
    assert {value.dtype for value in network.parameters()} == {torch.bfloat16}
    assert tiny(checkpoint, precision="bf16").run((network, processor), clip_of()).brief
    assert Caption().precision == "bf16"


def test_frames_that_the_processor_refuses_fail_the_clip(checkpoint, loaded):
    with pytest.raises(ClipError, match="rejects 1 frames of 1200 x 4 px: absolute aspect ratio"):
        tiny(checkpoint).run(loaded, clip_of(count=1, height_px=4, width_px=1200))


def test_other_checkpoints_are_explained(tmp_path):
    with pytest.raises(MissingRequirement, match=r"openuni checkpoints get Qwen/Qwen2\.5-VL-7B-Instruct"):
        Caption().load("cpu")
    with pytest.raises(OpenUniError, match="is not a vision-language model"):
        (tmp_path / "config.json").write_text('{"model_type": "depth_anything"}')
        Caption(checkpoint=str(tmp_path)).load("cpu")
    mute = tiny_checkpoint(tmp_path, template=None)
    with pytest.raises(OpenUniError, match="has no chat template"):
        Caption(checkpoint=mute).load("cpu")


def test_licences_of_the_published_models():
    terms = {checkpoint.ref: checkpoint for checkpoint in Caption.published()}
    assert terms["Qwen/Qwen2.5-VL-7B-Instruct"].terms == "permissive"
    assert terms["Qwen/Qwen2.5-VL-3B-Instruct"].requires_acceptance
    assert terms["Qwen/Qwen2.5-VL-72B-Instruct"].terms == "unclear"


@pytest.mark.parametrize(
    "wrong",
    [{"precision": "int4"}, {"max_frames": 0}, {"max_new_tokens": 0}, {"frames_per_s": -1.0}, {"brief_prompt": " "}],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(OpenUniError, match="Allowed"):
        Caption(**wrong)


def test_moving_pictures_are_described_the_same_each_time(checkpoint, loaded):
    clip = DecodedClip.from_frames(panned([(0, 0), (2, 1), (4, 2)], 48, 64))
    assert tiny(checkpoint).run(loaded, clip) == tiny(checkpoint).run(tiny(checkpoint).load("cpu"), clip)
