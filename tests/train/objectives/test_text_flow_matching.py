"""Losses of the text stream, tokenizers, and a model that learns to describe videos word for word."""

import dataclasses
from itertools import pairwise
from pathlib import Path
from string import ascii_letters

import pytest
import tokenizers
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast, T5Tokenizer

from openuni.manifests.errors import OpenUniError
from openuni.training.data.tokenizer import ByteTokenizer, Tokenizer, Umt5Tokenizer
from openuni.training.objectives.discrete_flow_matching import Source, add_token_noise, named_step, source_tokens
from openuni.training.objectives.flow_matching import add_noise
from openuni.training.objectives.text_flow_matching import embedding_losses, text_weight, token_losses
from openuni.training.randomness import uniforms
from tests.train.models.test_univigu import TINY
from tests.train.test_codecs import umt5_folder as umt5_folder

BYTES = ByteTokenizer()


def test_text_weight_is_the_ratio_of_tokens() -> None:
    assert text_weight(32_760, 256) == pytest.approx(127.97, abs=0.01)
    with pytest.raises(OpenUniError, match="got 6 and 0"):
        text_weight(6, 0)


def test_token_losses_are_means_per_sample() -> None:
    clean = torch.tensor([[0, 1], [2, 3]])
    flat = torch.zeros(2, 2, 4)
    sigma = torch.tensor([0.5, 1.0])
    torch.testing.assert_close(token_losses(flat, clean, clean, sigma), torch.full((2,), torch.tensor(4.0).log()))
    kl = token_losses(flat, clean, clean, sigma, "generalised_kl")  # rate 1 / sigma times (1 - p(clean))
    torch.testing.assert_close(kl, torch.tensor([2 * 0.75, 0.75]))


def test_embedding_loss_trains_the_embeddings_through_the_logits_alone() -> None:
    model = dataclasses.replace(TINY, text_flow="embeddings").load("cpu")
    clean = torch.randint(11, (2, 5), generator=torch.Generator().manual_seed(0))
    embedded = model.embedded(clean)
    noise, sigma = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(1)), torch.tensor([0.3, 0.8])
    streams = {"rgb": torch.zeros(2, 4, 1, 2, 2), "text": add_noise(embedded, noise, sigma)}
    predicted = model(streams, {"rgb": torch.zeros(2), "text": sigma}, {"rgb": torch.zeros(2, 3, 8)})
    loss = embedding_losses(predicted, embedded, noise, clean)
    expected = (noise - embedded).square().mean((1, 2)) + torch.tensor(11.0).log()  # both heads are 0
    torch.testing.assert_close(loss, expected)
    truth = {"text_velocity": noise - embedded, "text": 100.0 * torch.nn.functional.one_hot(clean, 11)}
    assert embedding_losses(truth, embedded, noise, clean).abs().max() < 1e-6
    (
        embedding_losses({"text_velocity": torch.zeros_like(noise), "text": predicted["text"]}, embedded, noise, clean)
        .sum()
        .backward()
    )
    assert not model.vocabulary_embedding.weight.grad.any()  # zero heads: only the target could have moved them


@pytest.mark.parametrize("text", ["", "a red cube", "größer 立方体", "x" * 40])
def test_bytes_round_trip(text: str) -> None:
    tokens = BYTES.encode(text, 24)
    assert tokens.shape == (24,) and tokens.dtype == torch.int64 and tokens[-1] == BYTES.end
    assert BYTES.decode(tokens) == text[:23]
    assert int(tokens.max()) < BYTES.vocabulary - 1  # never the mask


def test_bytes_cut_at_a_whole_character_and_decode_anything() -> None:
    assert BYTES.decode(BYTES.encode("aé", 3)) == "a"
    assert BYTES.decode(torch.tensor([97, 257, 255, 256, 98])) == "a\ufffd"
    with pytest.raises(OpenUniError, match="at least 1 token"):
        BYTES.encode("a", 0)


def test_umt5_round_trip(umt5_folder: str) -> None:
    tokenizer: Tokenizer = Umt5Tokenizer(umt5_folder)
    words = tokenizer.decode(range(3, tokenizer.vocabulary - 1)).split()[:2]
    tokens = tokenizer.encode(" ".join(words), 6)
    assert tokens.shape == (6,) and (tokens[2:] == tokenizer.end).all()
    assert tokenizer.decode(tokens) == " ".join(words)
    assert tokenizer.decode([tokenizer.vocabulary - 1, *tokens.tolist()]) == " ".join(words)  # the mask is no word
    assert tokenizer.encode(" ".join(words * 9), 4).tolist()[-1] == tokenizer.end


@pytest.fixture(scope="module")
def pieces_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of umT5's kind, whose special tokens are pieces of the vocabulary, likelier than any other."""
    folder = tmp_path_factory.mktemp("pieces")
    words = [("▁", -2.0), ("▁a", -3.0), ("▁sign", -3.0), *((letter, -5.0) for letter in f"{ascii_letters}</>_.")]
    special = [(name, 0.0) for name in ("<pad>", "</s>", "<unk>")]
    T5Tokenizer(vocab=[*special, *words], extra_ids=1).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("text", ["a sign says </s> and more", "</s>", "<pad> in a<unk>b", "no such thing"])
def test_special_tokens_in_a_text_are_words(pieces_folder: Path, text: str) -> None:
    tokenizer = Umt5Tokenizer(str(pieces_folder))
    tokens = tokenizer.encode(text, 64)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.lengths(["", text]).tolist() == [0, int((tokens != tokenizer.end).sum())]


def test_ordinary_texts_have_the_tokens_of_transformers(pieces_folder: Path) -> None:
    text = "a sign  says caf\u00e9."  # with a letter that is not in the vocabulary
    plain = AutoTokenizer.from_pretrained(pieces_folder)(text, add_special_tokens=False).input_ids
    assert 2 in plain and Umt5Tokenizer(str(pieces_folder)).encode(text, 32).tolist()[: len(plain)] == plain


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(OpenUniError, match=r"has no umT5 tokenizer that can be read. Pass the folder"):
        Umt5Tokenizer(str(tmp_path)).lengths(["a"])
    endless = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=endless, unk_token="<unk>").save_pretrained(tmp_path)
    with pytest.raises(OpenUniError, match="has no end token"):
        _ = Umt5Tokenizer(str(tmp_path)).end
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(OpenUniError, match="can be read"):
        _ = Umt5Tokenizer(str(tmp_path)).end


@pytest.mark.slow
@pytest.mark.parametrize("source", ["uniform", "mask"])
def test_a_model_learns_to_describe_videos_word_for_word(source: Source) -> None:
    """v2t: clean video, text from the source to its caption; every caption of four comes back exactly."""
    captions = ["a cube", "two balls fall", "grün", ""]
    clean = torch.stack([BYTES.encode(caption, 16) for caption in captions])
    torch.manual_seed(0)
    model = dataclasses.replace(TINY, heads=4, ffn_dim=96, vocabulary=BYTES.vocabulary).load("cpu")
    video = torch.randn(4, 4, 1, 2, 2)
    still, told = torch.zeros(4), {"rgb": torch.zeros(4, 1, 8)}
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    kind = (source, 257, 257)
    for step in range(250):
        sigma = uniforms((4,), 0, "sigma", step)
        noisy = add_token_noise(
            clean, source_tokens(clean.shape, *kind, 0, step), uniforms(clean.shape, 0, "kept", step), sigma
        )
        out = model({"rgb": video, "text": noisy}, {"rgb": still, "text": sigma}, told)
        token_losses(out["text"], noisy, clean, sigma).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def logits_of(tokens: torch.Tensor, sigma: float) -> torch.Tensor:
        sigmas = {"rgb": still, "text": torch.full((4,), sigma)}
        return model({"rgb": video, "text": tokens}, sigmas, told)["text"]

    made = source_tokens(clean.shape, *kind, 1)
    for step, sigmas in enumerate(pairwise(torch.linspace(1, 0, 17).tolist())):
        made = named_step(made, logits_of(made, sigmas[0]), sigmas, 1.0, step, 1)
    assert [BYTES.decode(row) for row in made] == captions
