"""The task grammar, its three words, and drawing from a mix."""

from collections import Counter

import pytest

from manifests.errors import OpenUniError
from train.tasks import RELEASED_WEIGHTS, Task, TaskMix, expand

THREE = ("rgb", "depth", "flow")


@pytest.mark.parametrize(
    ("text", "given", "made"),
    [
        ("rgb->depth", ("rgb",), ("depth",)),
        ("text->depth+rgb", (), ("rgb", "depth")),
        ("->rgb", (), ("rgb",)),
        (" depth + rgb -> flow ", ("rgb", "depth"), ("flow",)),
    ],
)
def test_grammar(text: str, given: tuple[str, ...], made: tuple[str, ...]) -> None:
    task = Task.parse(text)
    assert (task.given, task.made) == (given, made)
    assert Task.parse(str(task)) == task


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rgb->dept", '"dept" is no modality. Did you mean "depth"'),
        ("estimat", 'Did you mean "estimate"'),
        ("rgb->", "must make something"),
        ("rgb->rgb", "nothing that it is given"),
    ],
)
def test_grammar_errors_say_what_to_write(text: str, message: str) -> None:
    with pytest.raises(OpenUniError, match=message):
        Task.parse(text)


def test_three_words_cover_every_modality() -> None:
    assert [str(task) for task in expand("joint", THREE)] == ["text->rgb+depth", "text->rgb+flow"]
    assert [str(task) for task in expand("estimate", THREE)] == ["rgb->depth", "rgb->flow"]
    assert [str(task) for task in expand("control", THREE)] == ["depth->rgb", "flow->rgb"]
    with pytest.raises(OpenUniError, match="needs flow; the model has rgb, depth"):
        expand("rgb->flow", ("rgb", "depth"))
    with pytest.raises(OpenUniError, match="another modality"):
        expand("joint", ("rgb",))


def test_released_mix() -> None:
    mix = TaskMix.build(RELEASED_WEIGHTS, ("rgb", "depth"))
    assert {str(task): weight for task, weight in mix.weights} == {
        "text->rgb+depth": 0.5,
        "rgb->depth": 0.25,
        "depth->rgb": 0.25,
    }


def test_modality_weights_divide_a_word() -> None:
    mix = TaskMix.build({"estimate": 3.0, "text->rgb": 1.0}, THREE, {"depth": 1.0, "flow": 2.0})
    assert {str(task): round(weight, 6) for task, weight in mix.weights} == {
        "rgb->depth": 0.25,
        "rgb->flow": 0.5,
        "text->rgb": 0.25,
    }


def test_draw_is_named_and_follows_the_weights() -> None:
    mix = TaskMix.build(RELEASED_WEIGHTS, THREE)
    assert mix.draw(THREE, 0, 5, 1) == mix.draw(THREE, 0, 5, 1)
    counts = Counter(str(mix.draw(THREE, 0, step, 0)) for step in range(4000))
    for task, weight in mix.weights:
        assert counts[str(task)] / 4000 == pytest.approx(weight, abs=0.03)


def test_draw_needs_the_streams() -> None:
    mix = TaskMix.build(RELEASED_WEIGHTS, THREE)
    drawn = {str(mix.draw({"rgb", "flow"}, 0, step, 0)) for step in range(100)}
    assert drawn == {"text->rgb+flow", "rgb->flow", "flow->rgb"}
    with pytest.raises(OpenUniError, match="no task can be done with depth"):
        mix.draw({"depth"}, 0, 0, 0)


def test_no_weight_is_an_error() -> None:
    with pytest.raises(OpenUniError, match="above 0"):
        TaskMix.build({"joint": 0.0}, THREE)
    with pytest.raises(OpenUniError, match="negative"):
        TaskMix.build({"joint": -1.0}, THREE)
