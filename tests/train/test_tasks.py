"""The task grammar, its three words, and drawing from a mix."""

import re
from collections import Counter

import pytest

from openuni.manifests.errors import OpenUniError
from openuni.training.tasks import RELEASED_WEIGHTS, UNIVIDX_FAMILIES, Task, TaskMix, expand, partitions

THREE = ("rgb", "depth", "flow")


@pytest.mark.parametrize(
    ("text", "given", "made"),
    [
        ("rgb->depth", ("rgb",), ("depth",)),
        ("text->depth+rgb", (), ("rgb", "depth")),
        ("->rgb", (), ("rgb",)),
        ("RN2AI", ("rgb", "normal"), ("albedo", "irradiance")),
        (" depth + rgb -> flow ", ("rgb", "depth"), ("flow",)),
    ],
)
def test_grammar(text: str, given: tuple[str, ...], made: tuple[str, ...]) -> None:
    task = Task.parse(text)
    assert (task.conditions, task.targets) == (given, made)
    assert Task.parse(str(task)) == task


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rgb->dept", '"dept" is not a modality. Did you mean "depth"'),
        ("estimat", 'Did you mean "estimate"'),
        ("rgb->", "at least one target is required"),
        ("rgb->rgb", "no stream may be on both sides"),
        ("->text", 'task "->text": at least one video stream is required, such as rgb->text'),
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


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("estimate:depth", "rgb->depth"),
        ("joint:depth+flow", "text->rgb+depth+flow"),
        ("control: flow + depth", "depth+flow->rgb"),
        ("text2all:depth", "text->rgb+depth"),
        ("video2flow:segmentation", "rgb->segmentation"),
        ("flow2video:flow", "flow->rgb"),
    ],
)
def test_groups_with_modalities_name_tasks(name: str, form: str) -> None:
    task = Task.parse(name)
    assert str(task) == form and name.replace(" ", "") in {*task.names, "control:flow+depth"}
    assert {Task.parse(other) for other in task.names} == {task}


def test_every_name_of_a_task_is_read() -> None:
    tasks = [*partitions(UNIVIDX_FAMILIES["intrinsic"]), *partitions(UNIVIDX_FAMILIES["alpha"]), *partitions(THREE)]
    tasks += [Task.parse(name) for name in ("t2v", "v2t", "t2vt")]
    for task in tasks:
        assert task.names[0] == str(task) and {Task.parse(name) for name in task.names} == {task}
    assert Task.parse("R2AIN").names == (
        "rgb->albedo+irradiance+normal",
        "R2AIN",
        "estimate:albedo+irradiance+normal",
        "video2flow:albedo+irradiance+normal",
    )
    assert Task.parse("v2t").names == ("rgb->text", "v2t")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("estimat:depth", 'Did you mean "estimate"'),
        ("estimate:dept", '"dept" is not a modality. Did you mean "depth"'),
        ("joint:", "name modalities other than rgb, such as joint:depth"),
        ("control:rgb", "name modalities other than rgb"),
        ("intrinsic:depth", '"intrinsic" is not known. Allowed before the colon: '),
        ("rgb->depth:flow", "is not known"),
    ],
)
def test_groups_that_cannot_be_are_errors(name: str, message: str) -> None:
    with pytest.raises(OpenUniError, match=re.escape(message)):
        Task.parse(name)


# UniVidX's tables of tasks (arXiv 2605.00658), by family
PUBLISHED = {
    "intrinsic": "t2RAIN R2AIN RA2IN RI2AN RN2AI RIN2A RAN2I RAI2N AIN2R A2RIN I2RAN N2RAI AI2RN AN2RI IN2RA",
    "alpha": "t2RPFB R2PFB RP2FB RF2PB RB2PF FB2RP PFB2R RFB2P RPB2F RPF2B P2RFB F2RPB B2RPF PF2RB PB2RF",
}


@pytest.mark.parametrize("family", list(PUBLISHED))
def test_the_partitions_of_a_family_are_those_published(family: str) -> None:
    tasks = expand(family, UNIVIDX_FAMILIES[family])
    assert len(tasks) == len(set(tasks)) == 15
    assert {task.published for task in tasks} == set(PUBLISHED[family].split())
    for name in PUBLISHED[family].split():
        task = Task.parse(name)
        assert task.published == name and task in tasks and set(task.streams) == set(UNIVIDX_FAMILIES[family])
    assert expand("partitions", UNIVIDX_FAMILIES[family]) == tasks
    assert Task.parse("RAN2I" if family == "intrinsic" else "FRP2B").targets in (("irradiance",), ("background",))


def test_masking_is_uniform_over_partitions_within_a_model_of_both_families() -> None:
    both = ("rgb", "albedo", "irradiance", "normal", "alpha", "foreground", "background")
    mix = TaskMix.build({"intrinsic": 1.0, "alpha": 1.0}, both)
    assert len(mix.weights) == 30 and {round(weight, 9) for _, weight in mix.weights} == {round(1 / 30, 9)}
    with_maps = mix.available_tasks(UNIVIDX_FAMILIES["alpha"])
    assert len(with_maps) == 15, "a clip without intrinsic maps still has the tasks of the other family"
    assert len(partitions(both)) == 2**7 - 1
    drawn = Counter(mix.draw(UNIVIDX_FAMILIES["alpha"], 0, slot).published for slot in range(3000))
    assert len(drawn) == 15 and max(drawn.values()) < 1.4 * min(drawn.values())


@pytest.mark.parametrize("name", ["R2AI", "RR2AIN", "R2AINF", "XYZ2R"])
def test_names_that_nobody_published_are_errors(name: str) -> None:
    with pytest.raises(OpenUniError, match="each letter of a family once"):
        Task.parse(name)


def test_text_is_given_unless_it_is_made() -> None:
    assert Task.parse("t2v") == Task.parse("text->rgb") == Task((), ("rgb",))
    assert Task.parse("v2t") == Task.parse("rgb->text") == Task(("rgb",), (), generates_text=True)
    assert Task.parse("t2vt") == Task.parse("->rgb+text") == Task((), ("rgb",), generates_text=True)
    for name in ("t2v", "v2t", "t2vt"):
        assert Task.parse(str(Task.parse(name))) == Task.parse(name)
    assert Task.parse("v2t").streams == ("rgb",)
    assert Task.parse("v2t").published == ""


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
    with pytest.raises(OpenUniError, match="no task is available with streams: depth"):
        mix.draw({"depth"}, 0, 0, 0)


def test_no_weight_is_an_error() -> None:
    with pytest.raises(OpenUniError, match="above 0"):
        TaskMix.build({"joint": 0.0}, THREE)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf"), 1e308])
def test_weights_are_numbers_from_0_on(weight: float) -> None:
    with pytest.raises(OpenUniError, match=r'the weight of "joint" is .*\. Allowed: 0 to 1e\+09'):
        TaskMix.build({"joint": weight, "estimate": 1.0}, THREE)
    with pytest.raises(OpenUniError, match=r'the weight of "depth" is'):
        TaskMix.build({"joint": 1.0}, THREE, {"depth": weight})


@pytest.mark.parametrize("name", ["dpeth", "rgb"])
def test_modality_weights_are_of_modalities_beside_rgb(name: str) -> None:
    with pytest.raises(OpenUniError, match=f'modality_weights: non-rgb modality "{name}" is not known'):
        TaskMix.build({"joint": 1.0}, THREE, {name: 0.0})
    assert TaskMix.build({"joint": 1.0}, THREE, {"normal": 0.0}).tasks  # one that this corpus lacks


def test_the_order_of_tables_and_modalities_does_not_matter() -> None:
    one = TaskMix.build({"joint": 0.5, "estimate": 0.3, "rgb+depth->flow": 0.2}, ("rgb", "depth", "flow"))
    two = TaskMix.build({"rgb+depth->flow": 0.2, "estimate": 0.3, "joint": 0.5}, ("flow", "rgb", "depth"))
    assert one == two
    assert [str(task) for task in one.tasks] == [
        "text->rgb+depth",
        "text->rgb+flow",
        "rgb->depth",
        "rgb->flow",
        "rgb+depth->flow",
    ]
