"""Work on several inputs together: if it fails, in halves, until it is known which input fails."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from openuni.manifests.errors import OpenUniError

OUT_OF_MEMORY = "OutOfMemoryError"  # the name of the classes by which libraries say so

Input = TypeVar("Input")
Result = TypeVar("Result")


def results_in_halves(
    work: Callable[[Sequence[Input]], Sequence[Result]],
    inputs: Sequence[Input],
    on_out_of_memory: Callable[[int], None],
) -> list[Result | Exception]:
    """Per input its result, or its error. `work` returns one result per input; if it fails, it is given halves.

    `on_out_of_memory` gets the size that may still fit: a GPU does not grow. Raises `OpenUniError` of `work`: a missing
    part is not the fault of an input.
    """
    try:
        return list(work(inputs))
    except OpenUniError:
        raise
    except Exception as error:  # of one of these inputs, of any kind
        if len(inputs) == 1:
            return [error]
        is_out_of_memory = type(error).__name__ == OUT_OF_MEMORY
    # outside of the handler, whose error holds the memory that the batch took
    half = len(inputs) // 2
    if is_out_of_memory:
        on_out_of_memory(max(1, half))
    first = results_in_halves(work, inputs[:half], on_out_of_memory)
    return first + results_in_halves(work, inputs[half:], on_out_of_memory)
