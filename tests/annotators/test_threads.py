import threading

import pytest

from openuni.annotators._threads import in_threads, thread_count
from openuni.manifests.errors import ClipError


@pytest.fixture(params=[1, 3])
def threads(request, monkeypatch):
    """Of the worker."""
    monkeypatch.setenv("OPENUNI_THREADS", str(request.param))
    return request.param


def test_results_are_in_order_and_an_iterator_goes_on_while_its_items_are_processed(monkeypatch):
    monkeypatch.setenv("OPENUNI_THREADS", "2")
    assert thread_count() == 2
    last_is_drawn, caller, drawn_in = threading.Event(), threading.current_thread(), []

    def items():
        for item in range(5):
            drawn_in.append(threading.current_thread())
            if item == 4:
                last_is_drawn.set()
            yield item

    def process(item):
        assert threading.current_thread() is not caller
        assert last_is_drawn.wait(30)  # the first items are not done before the last one is drawn
        return 10 * item

    assert in_threads(process, items()) == [0, 10, 20, 30, 40]
    assert set(drawn_in) == {caller}
    assert in_threads(process, []) == []


def test_the_first_error_is_raised_that_of_the_iterator_too():
    def fail(item):
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 3"):
        in_threads(fail, [3, 4])
    with pytest.raises(ZeroDivisionError):
        in_threads(str, (1 // item for item in (1, 0)))


def test_results_are_in_order_and_threads_end(threads):
    running = threading.active_count()
    together = threading.Barrier(threads, timeout=30)

    def work(number, add):
        if number < threads:
            together.wait()  # passes only if that many calls run at the same time
        return number + add

    assert in_threads(work, range(20), [100] * 20) == list(range(100, 120))
    assert threading.active_count() == running


def test_the_first_error_arrives(threads):
    def fails(number):
        raise ClipError(f"frame {number}")

    with pytest.raises(ClipError, match="frame 0"):
        in_threads(fails, range(4))
