"""`openuni generate --task` and `--prompts`, `openuni tasks`: names, many prompts, records, wrong conditions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openuni.inference.conditions import check_looks
from openuni.inference.generate import GenerateRequest
from openuni.inference.prompts_file import read_prompts
from openuni.manifests.contracts.modality import picture_levels
from openuni.manifests.errors import OpenUniError
from openuni.manifests.video.encode import write_video
from openuni.training.run import Run
from openuni.training.tasks import Task
from openuni.world import make_clip
from tests.command_line import cli
from tests.train.small_runs import one_step_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One step on clips of rgb, depth and normal: 5 frames of 16 x 16 pixels."""
    return one_step_run(tmp_path_factory.mktemp("requests"), ("rgb", "depth", "normal"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Renderings of a world clip as videos, by modality."""
    folder, clip = tmp_path_factory.mktemp("videos"), make_clip(3, frames=5, height_px=32, width_px=32)
    pictures = {name: picture_levels(name, signal.to_rgb()) for name, signal in clip.modalities.items()}
    for name, frames in pictures.items():
        write_video(folder / f"{name}.mp4", frames, 8.0, pixels="yuv444p")
    return {name: folder / f"{name}.mp4" for name in pictures}


def generated(run: Run, out: Path, *flags: Any) -> list[dict[str, Any]]:
    done = cli("generate", run.folder, "--steps", 1, "--out", out, "--json", *flags)
    assert done.returncode == 0, done.stderr
    records: list[dict[str, Any]] = json.loads(done.stdout)
    return records


@pytest.mark.parametrize("name", ["estimate:depth", "rgb->depth", "video2flow:depth"])
def test_a_task_is_any_of_its_names(run: Run, videos: dict[str, Path], tmp_path: Path, name: str) -> None:
    (record,) = generated(run, tmp_path / "made", "--task", name, "--given", f"rgb={videos['rgb']}")
    assert record["task"] == "rgb->depth" and record["files"] == {"depth": ["depth.mp4", "depth.npy"]}
    (other,) = generated(run, tmp_path / "other", "--make", "depth", "--given", f"rgb={videos['rgb']}")
    assert np.array_equal(np.load(tmp_path / "made/depth.npy"), np.load(tmp_path / "other/depth.npy"))
    assert other["task"] == record["task"]


def test_the_record_says_what_was_done(run: Run, tmp_path: Path) -> None:
    flags = [
        "--prompt",
        "a cube",
        "--seed",
        7,
        "--solver",
        "heun",
        "--shift",
        3,
        "--guidance",
        2,
        "--negative-prompt",
        "x",
    ]
    (record,) = generated(run, tmp_path, "--task", "joint:depth", *flags)
    assert json.loads((tmp_path / "generation.json").read_text()) == record
    assert {
        "step": 1, "task": "text->rgb+depth", "prompt": "a cube", "negative_prompt": "x", "seed": 7, "solver": "heun",
        "shift": 3.0, "guidance_scale": 2.0, "steps": 1, "size": [5, 16, 16], "fps": 25.0, "given": {},
    }.items() <= record.items()  # fmt: skip
    for change in (["--solver", "euler"], ["--shift", 1], ["--seed", 8], ["--negative-prompt", "y"]):
        again = [*flags, "--steps", 3, *change]
        generated(run, tmp_path / "again", "--task", "joint:depth", *again)
        generated(run, tmp_path / "same", "--task", "joint:depth", *flags, "--steps", 3)
        one, two = (np.load(tmp_path / folder / "rgb.npy") for folder in ("again", "same"))
        assert not np.array_equal(one, two), change


def test_many_prompts_come_from_one_file(run: Run, videos: dict[str, Path], tmp_path: Path) -> None:
    lines = [{"prompt": "a cube", "seed": 1}, {"name": "second", "prompt": "two\u2028balls"}]
    path = videos["rgb"].parent / "prompts.jsonl"
    path.write_text(
        "\n".join(json.dumps(line | {"given": {"rgb": "rgb.mp4"}}, ensure_ascii=False) for line in lines) + "\n\n"
    )
    records = generated(run, tmp_path / "many", "--task", "estimate:depth", "--prompts", path, "--seed", 5)
    assert [(Path(one["folder"]).name, one["prompt"], one["seed"]) for one in records] == [
        ("000001", "a cube", 1),
        ("second", "two\u2028balls", 5),
    ]
    generated(
        run,
        tmp_path / "one",
        "--task",
        "estimate:depth",
        "--given",
        f"rgb={videos['rgb']}",
        "--prompt",
        "a cube",
        "--seed",
        1,
    )
    made = [np.load(tmp_path / folder / "depth.npy") for folder in ("many/000001", "one", "many/second")]
    assert np.array_equal(made[0], made[1]) and not np.array_equal(made[0], made[2])


def test_finished_lines_are_not_generated_again(
    run: Run, videos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    generate = Run.generate

    def counted(self: Run, prompt: str, *rest: Any) -> dict[str, Any]:
        asked.append(prompt)
        return generate(self, prompt, *rest)

    monkeypatch.setattr(Run, "generate", counted)
    video, path, line = tmp_path / "rgb.mp4", tmp_path / "prompts.jsonl", ("--task", "estimate:depth", "--prompts")
    video.write_bytes(videos["rgb"].read_bytes())
    path.write_text("\n".join(json.dumps({"prompt": prompt, "given": {"rgb": "rgb.mp4"}}) for prompt in "abc"))
    first = generated(run, tmp_path / "made", *line, path)
    (tmp_path / "made/000002/generation.json").unlink()  # as after a kill
    (tmp_path / "made/000003/depth.mp4").unlink()
    assert generated(run, tmp_path / "made", *line, path) == first and asked == ["a", "b", "c", "b", "c"]
    asked.clear()
    assert generated(run, tmp_path / "made", *line, path) == first and not asked
    video.write_bytes(videos["normal"].read_bytes())  # another picture
    assert generated(run, tmp_path / "made", *line, path) != first and asked == ["a", "b", "c"]
    generated(run, tmp_path / "made", *line, path, "--seed", 1)
    assert len(asked) == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"}\n{"promt": "b"}', 'line 2: "promt" is not known. Did you mean "prompt"'),
        ('{"prompt": 3}', "line 1: prompt must be of type str, got 3"),
        ('{"seed": true}', "line 1: seed must be of type int, got true"),
        ('{"given": {"rgb": 3}}', 'given must be such as {"rgb": "clip.mp4"}, got {"rgb": 3}'),
        ('{"given": {"rgb": "a\\u0000"}}', "given must be such as"),
        ('{"given": {"rgb=a": "b"}}', "given must be such as"),
        ('{"prompt": "\\ud800"}', "line 1: not valid JSON: 'utf-8' codec can't encode"),
        ('{"given": {"rgb": "\\ud800"}}', "line 1: not valid JSON"),
        ('{"name": "../out"}', 'name "../out" must be unique and consist of letters'),
        ('{"name": "a"}\n{"name": "A"}', 'line 2: name "A" must be unique'),
        ("[1]", "must be an object such as"),
        ("{", "line 1: not valid JSON"),
        ("[" * 100_000, "line 1: not valid JSON"),
        ("\n", "no lines found"),
        ("\udcff", "codec can't decode"),
    ],
)
def test_lines_that_cannot_be_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(OpenUniError) as error:
        read_prompts(path, GenerateRequest())
    assert message in str(error.value)


def test_a_wrong_line_ends_the_command_before_the_first_video(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n{"name": "bad", "prompt": "b", "given": {"normal": "n.mp4"}}')
    done = cli("generate", run.folder, "--task", "joint:depth", "--prompts", path, "--out", tmp_path / "made")
    assert done.returncode == 2 and not (tmp_path / "made").exists()
    assert "bad: --task joint:depth (text->rgb+depth) needs no --given; found: normal" in done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "estimate:flow"], 'not trained for "rgb->flow"; it was trained for: text->rgb+depth'),
        (["--task", "R2AIN"], "it was trained for"),
        (["--task", "estimat:depth"], 'Did you mean "estimate"'),
        (["--task", "estimate:depth"], "needs --given rgb=VIDEO; found: no condition"),
        (["--task", "joint:depth", "--make", "normal"], "generates depth, rgb, but --make says normal"),
        ([], "--task is missing: one of text2all:depth, text2all:normal, "),
        (["--task", "joint:depth", "--shift", "0"], "sampling: shift = 0.0. Allowed: above 0"),
    ],
)
def test_tasks_that_cannot_be_are_named(run: Run, tmp_path: Path, flags: list[str], message: str) -> None:
    done = cli("generate", run.folder, "--out", tmp_path / "made", *flags)
    assert done.returncode == 2 and message in done.stderr and not (tmp_path / "made").exists()


def test_tasks_are_listed_with_all_names_and_what_they_take(run: Run) -> None:
    done = cli("tasks", run.folder, "--json")
    assert done.returncode == 0, done.stderr
    listed = {record["task"]: record for record in json.loads(done.stdout)}
    assert set(listed) == {str(task) for task in run.tasks} and len(listed) == 6
    assert listed["rgb->depth"] == {
        "task": "rgb->depth", "names": ["estimate:depth", "video2flow:depth"],
        "conditions": ["rgb"], "targets": ["depth"],
        "prompt": True, "guidance": True, "negative_prompt": True, "condition_guidance": False,
    }  # fmt: skip
    for record in listed.values():
        assert all(str(Task.parse(name)) == record["task"] for name in record["names"])
    lines = cli("tasks", run.folder).stdout.splitlines()
    assert len(lines) == 7 and "control:normal, flow2video:normal" in " ".join(lines)
    assert cli("tasks", run.folder / "nowhere").returncode == 2


# ---------------------------------------------------------------- videos of another modality


def test_renderings_are_known_as_what_they_are() -> None:
    clip = make_clip(3, frames=5, height_px=64, width_px=80)
    seen = {name: picture_levels(name, signal.to_rgb()) for name, signal in clip.modalities.items()}
    for name, frames in seen.items():
        check_looks(name, frames, "")
    for name, given, like in (("normal", "depth", "normal"), ("flow", "normal", "flow"), ("depth", "flow", "depth")):
        with pytest.raises(OpenUniError, match=rf"not a rendering of {given}: .*It could be: rgb, .*{like}"):
            check_looks(given, seen[name], "--given")
    for given in ("normal", "flow", "densepose"):
        with pytest.raises(OpenUniError, match=f"not a rendering of {given}"):
            check_looks(given, seen["rgb"], "--given")
    for picture in ("rgb", "foreground", "albedo", "skeleton"):  # every picture can be one
        check_looks(picture, seen["normal"], "")


def test_a_given_video_of_another_modality_is_an_error(run: Run, videos: dict[str, Path], tmp_path: Path) -> None:
    line = ("generate", run.folder, "--steps", 1, "--out", tmp_path / "made", "--task")
    done = cli(*line, "control:normal", "--given", f"normal={videos['depth']}")
    assert done.returncode == 2 and "the video is not a rendering of normal" in done.stderr
    assert not (tmp_path / "made").exists()
    assert cli(*line, "control:normal", "--given", f"normal={videos['normal']}").returncode == 0


def test_the_record_beside_a_generated_video_says_its_modality(run: Run, tmp_path: Path) -> None:
    """As pictures, all maps could be rgb; the record knows."""
    generated(run, tmp_path / "first", "--task", "joint:depth")
    line = ("generate", run.folder, "--steps", 1, "--out", tmp_path / "second", "--task", "estimate:normal", "--given")
    done = cli(*line, f"rgb={tmp_path / 'first/depth.mp4'}")
    assert done.returncode == 2
    assert "generation.json says that this video is depth, expected rgb. Pass --given depth=" in done.stderr
    assert cli(*line, f"rgb={tmp_path / 'first/rgb.mp4'}").returncode == 0
    for text in (
        "[]",
        "{",
        '{"files": {"rgb": 3}}',
        '{"files": []}',
        '{"files": {"rgb": ["../a"]}}',
        "[" * 99_999,
    ):  # another program's
        (tmp_path / "first/generation.json").write_text(text)
        assert cli(*line, f"rgb={tmp_path / 'first/depth.mp4'}").returncode == 0
