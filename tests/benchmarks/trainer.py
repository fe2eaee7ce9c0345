"""A step of the trainer over a bare loop: the same model, optimizer and batches, which lie in memory; and its parts.

CPU time in one thread, the cases in turns, the least of several rounds. Run by hand.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from openuni.manifests.corpus.corpus import Corpus
from openuni.training.data.batches import TrainingBatch
from openuni.training.loop.setup import prepare
from openuni.training.loop.trainer import Trainer
from openuni.training.recipe import TrainingRecipe
from tests.benchmarks.models import in_turns
from tests.train.corpora import random_clips, write_corpus

GOAL = 1.05
SIZES = {
    "tiny, 1 block of width 96": {"num_layers": 1, "heads": 2, "head_dim": 48, "ffn_dim": 384},
    "small, 4 blocks of width 384": {"num_layers": 4, "heads": 6, "head_dim": 64, "ffn_dim": 1536},
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_corpus(Path(folder) / "corpus", random_clips(8))
        print(f"torch {torch.__version__}, {given.rounds} rounds, CPU ms")
        for name, sizes in SIZES.items():
            took = measured(corpus, Path(folder) / name, sizes, given.rounds)
            for part, seconds in took.items():
                print(f"{name:<32} {part:<28} {1000 * seconds:9.2f}")
            ratio = took["trainer"] / took["bare loop"]
            print(f"{name:<32} {'trainer over bare loop':<28} {ratio:9.3f}  goal {GOAL}")


def measured(corpus: Corpus, folder: Path, sizes: dict[str, int], rounds: int) -> dict[str, float]:
    """CPU seconds of a step by case."""
    recipe = TrainingRecipe.from_dict(
        {
            "model": {"name": "unityvideo", "freq_dim": 64, "switcher_dim": 64, "patch": [1, 1, 1]} | sizes,
            "data": {"text_length": 0, "validation_share": 0.0},
            "optimizer": {"steps": 10_000, "batch_size": 8, "gradient_accumulation_steps": 2},
        }
    )
    trainer = Trainer(prepare(recipe, corpus, folder), folder, "cpu", None)
    parts = trainer.loader.step(trainer.plan, 0)
    bare = BareLoop(trainer, [batch for part in parts for batch in part])
    gradients = [torch.randn_like(tensor) for tensor in trainer.weights.local.values()]
    average = [tensor.detach().clone() for tensor in trainer.weights.local.values()]

    def clip_ours() -> None:
        from openuni.training.loop.weights import clip_gradients, local_norm

        clip_gradients(gradients, float(local_norm(gradients, torch.device("cpu"))), 1.0)

    cases: dict[str, Callable[[], Any]] = {
        "bare loop": bare.step,
        "trainer": lambda: trainer._one_step(iter([parts])),
        "of it: EMA": lambda: trainer.ema.update(0.999),
        "EMA, one tensor at a time": lambda: _lerp(average, list(trainer.weights.local.values())),
        "of it: clipping": clip_ours,
        "of it: finite checks": trainer._check_weights,
    }
    return in_turns(cases, rounds)


class BareLoop:
    """Forward, loss, backward, clipping, AdamW and EMA of a copy of the model, without anything else."""

    def __init__(self, trainer: Trainer, batches: list[TrainingBatch]) -> None:
        self.model, self.batches, self.recipe = copy.deepcopy(trainer.model), batches, trainer.recipe
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, betas=(0.9, 0.95))
        self.average = [parameter.detach().clone() for parameter in self.model.parameters()]

    def step(self) -> None:
        """One step."""
        for batch in self.batches:
            predicted = self.model(batch.noisy(), batch.sigmas, batch.text)
            loss = sum(
                (
                    (predicted[name] - (batch.noise[name] - clean)).square().flatten(1).mean(1) * batch.targets[name]
                ).sum()
                for name, clean in batch.clean.items()
            )
            (loss / self.recipe.optimizer.batch_size).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.5)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        _lerp(self.average, list(self.model.parameters()))


@torch.no_grad()
def _lerp(average: list[torch.Tensor], current: list[Any]) -> None:
    for old, new in zip(average, current, strict=True):
        old.lerp_(new, 0.001)


if __name__ == "__main__":
    main()
