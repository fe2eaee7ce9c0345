"""What ranks of a training import, for the process that they are forked from (`rank_processes.py`)."""

import openuni.training.loop.trainer
import openuni.training.models.unityvideo
import openuni.training.models.unividx
import openuni.training.models.univigu
import tests.train.loop.rank_jobs

__all__ = ["openuni", "tests"]
