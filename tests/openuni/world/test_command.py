"""`openuni world`: clips as ordered, going on where it stopped, and a recipe that takes them over."""

import json
import shlex
import tomllib
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import openuni
from openuni.cli.main import app
from openuni.console.progress import Reporter
from openuni.manifests.errors import OpenUniError
from openuni.world import PRESETS, make_clip
from openuni.world.command import WorldRequest, make_world, read_size


def request(out: Path, **changes) -> WorldRequest:
    given = {"preset": "person", "clips": 2, "out": out, "frames": 3, "size": "32x48", "fps": 8.0, "seed": 5}
    return WorldRequest(**(given | {"modalities": "", "workers": 1} | changes))


def make(out: Path, **changes) -> str:
    return make_world(request(out, **changes), Reporter(quiet=True))


def times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.iterdir()}


def test_help_names_every_preset_and_flag() -> None:
    text = CliRunner().invoke(app, ["world", "--help"], terminal_width=200).output
    for word in (*PRESETS, "--clips", "--frames", "--size", "--out", "--seed", "--fps", "--modalities", "--workers"):
        assert word in text


def test_it_writes_what_was_ordered_and_says_what_is_next(tmp_path: Path) -> None:
    arguments = ["world", "--preset", "layers", "--clips", "1", "--frames", "2", "--size", "32x48", "--out"]
    done = CliRunner().invoke(app, [*arguments, str(tmp_path), "--modalities", "alpha, foreground", "--seed", "3"])
    assert done.exit_code == 0
    assert f"openuni run {tmp_path}/layers.toml {tmp_path} --out corpus/" in done.output
    names = ("txt", "mp4", "json", "alpha.mkv", "foreground.mkv")
    assert sorted(times(tmp_path)) == sorted(["layers.toml", *(f"layers-000003.{name}" for name in names)])
    facts = json.loads((tmp_path / "layers-000003.json").read_text())
    made = make_clip(3, preset="layers", frames=2, height_px=32, width_px=48)
    expected = {"caption": made.caption, "caption_brief": made.brief, "exposure": made.exposure, "height_px": 32}
    expected |= {"preset": "layers", "seed": 3, "fps": 16.0, "focal_px": made.lens.focal_px, "width_px": 48}
    assert {key: facts[key] for key in expected} == expected
    assert set(facts["modalities"]) == {"alpha", "foreground"}


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    make(tmp_path)
    first = times(tmp_path)
    make(tmp_path)
    assert times(tmp_path) == first  # nothing is made again
    (tmp_path / "person-000005.json").unlink()  # as when it was killed in that clip
    make(tmp_path, clips=3)
    second = times(tmp_path)
    assert all(second[name] == first[name] for name in first if name.startswith("person-000006"))
    assert second["person-000005.depth.mkv"] > first["person-000005.depth.mkv"]
    assert "person-000007.json" in second
    (tmp_path / "person-000006.flow.mkv").unlink()
    (tmp_path / "person-000007.json").write_text("no JSON")
    make(tmp_path, clips=3)
    third = times(tmp_path)
    assert third["person-000006.json"] > second["person-000006.json"]
    assert third["person-000005.json"] == second["person-000005.json"]
    assert json.loads((tmp_path / "person-000007.json").read_text())["frames"] == 3


@pytest.mark.parametrize("change", [{"frames": 2}, {"size": "48x32"}, {"fps": 9.0}, {"modalities": "depth"}])
def test_a_clip_of_another_order_is_made_again(tmp_path: Path, change: dict) -> None:
    make(tmp_path, clips=1)
    first = times(tmp_path)
    make(tmp_path, clips=1, **change)
    assert times(tmp_path)["person-000005.json"] > first["person-000005.json"]
    second = times(tmp_path)
    make(tmp_path, clips=1, **change)
    assert times(tmp_path) == second


def test_the_recipe_follows_the_modalities_unless_it_was_edited(tmp_path: Path) -> None:
    recipe = tmp_path / "person.toml"
    make(tmp_path, clips=1, modalities="depth")
    assert tomllib.loads(recipe.read_text())["annotators"]["supplied"]["modalities"] == ["depth"]
    text = make(tmp_path, clips=1, modalities="depth,flow")
    assert tomllib.loads(recipe.read_text())["annotators"]["supplied"]["modalities"] == ["depth", "flow"]
    assert "was edited" not in text
    recipe.write_text("# my note\n" + recipe.read_text())
    assert "was edited" not in make(tmp_path, clips=1, modalities="depth,flow")
    assert recipe.read_text().startswith("# my note\n")
    recipe.write_text(recipe.read_text() + "\n[annotators.dis]\n")
    text = make(tmp_path, clips=1, modalities="depth")
    assert "person.toml was edited and is not overwritten" in text and "dis" in recipe.read_text()


def test_what_is_next_can_be_typed_as_it_stands(tmp_path: Path) -> None:
    text = make(tmp_path / "a folder", clips=1, modalities="depth")
    following = shlex.split(text.partition("Next: ")[2])
    assert following[:4] == ["openuni", "run", str(tmp_path / "a folder" / "person.toml"), str(tmp_path / "a folder")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preset": "persns"}, r'world preset "persns" is not known\. Did you mean "persons"'),
        ({"size": "480"}, r'--size "480": must be HEIGHTxWIDTH.*480x640'),
        ({"size": "33x48"}, "height_px = 33.*even"),
        ({"fps": float("inf")}, "--fps inf: must be 1 to 1000 frames per second"),
        ({"fps": 1e300}, r"--fps 1e\+300: must be 1 to 1000"),
        ({"modalities": "depht"}, r'has no ground truth "depht"\. Did you mean "depth"\? Available: .*skeleton'),
        ({"modalities": "alpha"}, 'preset "person" has no ground truth "alpha"'),
    ],
)
def test_wrong_orders_say_what_is_allowed(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(OpenUniError, match=message):
        make(tmp_path / "out", **change)
    assert not (tmp_path / "out").exists()


def test_sizes_are_height_by_width() -> None:
    assert read_size("480x640") == (480, 640)
    assert read_size(" 16×32 ") == (16, 32)


def test_a_corpus_takes_the_ground_truth_over(tmp_path: Path) -> None:
    """The recipe that is written reads everything that was written, and it is what was rendered."""
    make(tmp_path / "clips", clips=1)
    corpus = openuni.run(tmp_path / "clips" / "person.toml", tmp_path / "clips", out=tmp_path / "corpus")
    assert corpus.summary().ok == 1
    (clip,) = list(corpus)
    made = make_clip(5, preset="person", frames=3, height_px=32, width_px=48, fps=8.0)
    assert clip.caption == made.caption
    depth = made.modalities["depth"].array
    depth_bound = depth.max() * (np.log(depth.max() / depth.min()) / 131070 + 2**-22)
    bounds = {"albedo": 1e-5, "irradiance": 2e-3, "normal": 1e-4, "depth": depth_bound, "flow": 1 / 128}
    for name in PRESETS["person"].modalities:
        error = np.abs(getattr(clip, name).astype(float) - made.modalities[name].array).max()
        assert error <= bounds.get(name, 0.0), name
