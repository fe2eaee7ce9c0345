from openuni.annotators.dis import Dis
from openuni.annotators.raft import Raft
from openuni.annotators.sam import Sam
from openuni.annotators.sam2 import Sam2
from openuni.pipeline.operator_phase import with_half_batch_size


def test_an_operator_that_ran_out_of_memory_has_half_its_batch_until_there_is_none_smaller():
    assert with_half_batch_size(Raft(frames_per_batch=5)) == Raft(frames_per_batch=2)
    assert with_half_batch_size(Sam(points_per_batch=64)) == Sam(points_per_batch=32, frames_per_batch=1)
    assert with_half_batch_size(Sam(points_per_batch=1, frames_per_batch=1)) is None
    assert with_half_batch_size(Sam2()).tracked_per_batch == Sam2().tracked_per_batch // 2
    assert with_half_batch_size(Dis()) is None
