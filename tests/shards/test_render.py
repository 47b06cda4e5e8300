"""Rendered faces: same bytes for a seed, honest annotations, faces that a detector finds."""

import csv
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from shards.render import LABELS, ClipSpec, Expression, Face, RenderError, Scene, render_clip
from shards.render.cli import main
from shards.render.dataset import COLUMNS, render_dataset
from shards.render.expression import ACTION_UNITS, PROTOTYPES
from shards.render.plan import assign_splits, plan_clips
from shards.render.scene import Drift

SMALL = {"size": (160, 128), "seconds": 0.6, "workers": 1}
TINY = [
    "--subjects",
    "1",
    "--splits",
    "train=1",
    "--size",
    "96x80",
    "--seconds",
    "0.4",
    "--workers",
    "1",
]
STILL = Drift(0.0, ((0.0, 1.0, 0.0), (0.0, 1.0, 0.0)))


def _expression(label: str, strength: float = 1.0, seed: int = 0, frames: int = 20) -> Expression:
    rng = np.random.default_rng(seed)
    return Expression.sample(label, strength, frames=frames, fps=25, rng=rng)


def _spec(label: str, *, seed: int = 0, strength: float = 1.0, still: bool = False) -> ClipSpec:
    """Two frames, before and at the apex; `still` keeps everything but the expression fixed."""
    scene = Scene.sample(seed, seed, seconds=0.8)
    if still:
        scene = replace(
            scene, yaw=STILL, pitch=STILL, roll=STILL, x=STILL, y=STILL, gaze_x=STILL,
            gaze_y=STILL, scale=replace(STILL, mean=1.0), blinks=(), noise=0.0, blur=0.3,
        )  # fmt: skip
    expression = replace(_expression(label, strength, seed), onset=0, apex=1, offset=2)
    return ClipSpec(Face.from_seed(seed), scene, expression, 2)


def _apex_change(spec: ClipSpec) -> np.ndarray:
    """Mean absolute difference apex − start over channels, [h, w]."""
    before, apex = render_clip(spec).astype(np.float32)
    return np.abs(apex - before).mean(axis=-1)


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "annotations.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("render") / "set"
    render_dataset(out, subjects=3, clips_per_subject=7, seed=5, strengths=(1.0, 0.2), **SMALL)
    return out


def test_same_seed_gives_the_same_bytes_with_any_number_of_workers(tmp_path: Path) -> None:
    arguments = {"subjects": 3, "clips_per_subject": 1, "size": (96, 80), "seconds": 0.4}
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    render_dataset(one, seed=3, workers=1, **arguments)
    render_dataset(two, seed=3, workers=2, **arguments)
    render_dataset(other, seed=4, workers=1, **arguments)
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert len(files) == 5
    for name in files:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert any(
        (one / n).read_bytes() != (other / n).read_bytes() for n in files if n.suffix == ".mp4"
    )


def test_annotations_describe_the_files(dataset: Path) -> None:
    import av

    rows = _rows(dataset)
    assert tuple(rows[0]) == COLUMNS
    assert {row["path"] for row in rows} == {
        str(p.relative_to(dataset)) for p in dataset.rglob("*.mp4")
    }
    for row in rows:
        with av.open(str(dataset / row["path"])) as container:
            stream = container.streams.video[0]
            frames = sum(1 for _ in container.decode(stream))
            assert stream.average_rate == Fraction(25)
            assert (stream.width, stream.height) == (160, 128)
        assert frames == 15
        onset, apex, offset = (int(row[name]) for name in ("onset", "apex", "offset"))
        assert 0 < onset < apex < offset < frames
        assert bool(row["action_units"]) == (row["label"] != "neutral")
    assert {row["strength"] for row in rows} == {"1", "0.2"}


def test_labels_are_balanced_and_splits_disjoint_by_subject(dataset: Path) -> None:
    rows = _rows(dataset)
    labels = [row["label"] for row in rows]
    assert {label: labels.count(label) for label in LABELS} == dict.fromkeys(LABELS, 3)
    split_of: dict[str, set[str]] = {}
    for row in rows:
        split_of.setdefault(row["subject_id"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in split_of.values())
    assert set.union(*split_of.values()) == {"train", "val", "test"}


def test_plan_balances_labels_when_clips_do_not_divide_by_seven() -> None:
    split_of = assign_splits(12, {"train": 0.7, "val": 0.15, "test": 0.15}, 0)
    assert sorted(split_of.count(name) for name in ("train", "val", "test")) == [2, 2, 8]
    plan = plan_clips(12, 5, 0, (1.0, 0.5), split_of)
    counts = [sum(clip.label == label for clip in plan) for label in LABELS]
    assert max(counts) - min(counts) <= 1
    assert len({clip.path for clip in plan}) == 60
    assert len({clip.face_seed for clip in plan}) == 12


@pytest.mark.parametrize("label", LABELS)
def test_curves_rest_before_the_onset_and_peak_at_the_apex_alone(label: str) -> None:
    for seed in range(12):
        expression = _expression(label, 0.2 if seed % 2 else 1.0, seed, frames=38)
        curve = expression.envelope(38)
        assert curve.argmax() == expression.apex and curve.max() == 1
        assert np.count_nonzero(curve == 1) == 1
        assert not curve[: expression.onset + 1].any() and not curve[expression.offset :].any()
        total = expression.activations(38)
        assert total.shape == (38, len(ACTION_UNITS), 2)
        assert total.any() == (label != "neutral")
        units = {unit for unit, _, _ in expression.units}
        assert units in [set(variant) for variant in PROTOTYPES[label]]
        if expression.strength == 0.2:  # micro-expressions last under half a second
            assert expression.offset - expression.onset <= 12


@pytest.mark.parametrize(
    ("label", "rows"),
    [
        ("happiness", slice(130, 210)),
        ("surprise", slice(130, 230)),
        ("anger", slice(70, 125)),
        ("sadness", slice(60, 110)),
    ],
)
def test_expression_shows_in_its_region_and_grows_with_strength(label: str, rows: slice) -> None:
    face = slice(100, 220)
    changes = [_apex_change(_spec(label, seed=9, strength=s, still=True)) for s in (0.1, 0.4, 1.0)]
    inside = [change[rows, face].mean() for change in changes]
    assert inside[0] < inside[1] < inside[2]
    assert inside[2] > 2.0 and inside[0] < 0.5 * inside[2]
    background = changes[2][:, :60].mean()
    assert background < 0.05


def test_neutral_face_does_not_move() -> None:
    assert _apex_change(_spec("neutral", seed=9, still=True)).max() == 0


def test_a_stock_detector_finds_the_face_and_only_it() -> None:
    cv2 = pytest.importorskip("cv2")
    cascade = cv2.data.haarcascades + "haarcascade_frontalface_default.xml"
    detector = cv2.CascadeClassifier(cascade)
    found = total = 0
    for seed in range(1000, 1021):
        spec = _spec(LABELS[seed % 7], seed=seed)
        for frame in render_clip(spec):
            grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
            boxes = detector.detectMultiScale(grey, 1.1, 5, minSize=(60, 60))
            total += 1
            if len(boxes) == 1:
                x, y, w, h = boxes[0]
                framing = spec.scene
                cx = 160 + framing.x.mean * 93
                found += abs(x + w / 2 - cx) < 40 and 90 < y + h / 2 < 150
    assert found / total >= 0.93


def test_people_differ_and_cover_light_and_dark_skin() -> None:
    people = [Face.from_seed(seed) for seed in range(80)]
    assert Face.from_seed(7) == people[7] and len(set(people)) == 80
    luminance = np.array([np.dot(face.skin, (0.3, 0.6, 0.1)) for face in people])
    assert luminance.max() > 8 * luminance.min()
    assert len({face.hair_style for face in people}) >= 7
    assert {"none", "full"} <= {face.beard for face in people}
    assert {"none", "thick"} <= {face.glasses for face in people}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"subjects": 2}, "need at least 3 subjects"),
        ({"subjects": 0}, "at least 1"),
        ({"strengths": (1.5,)}, "strengths must lie"),
        ({"strengths": ()}, "strengths must lie"),
        ({"size": (161, 128)}, "even"),
        ({"seconds": 0.1}, "at least 8 frames"),
        ({"fps": 0.0}, "fps must lie"),
        ({"splits": {"train": 0.0}}, "positive shares"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_written(
    tmp_path: Path, arguments: dict, message: str
) -> None:
    with pytest.raises(RenderError, match=message):
        render_dataset(tmp_path / "out", **{"subjects": 3, **arguments})
    assert not list(tmp_path.iterdir())


def test_a_foreign_folder_is_refused_and_our_own_is_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "holiday"
    foreign.mkdir()
    (foreign / "photo.txt").write_text("keep me")
    flags = [*TINY, "--clips", "1"]
    assert main(["--out", str(foreign), *flags]) == 2
    assert "not empty" in capsys.readouterr().err
    assert (foreign / "photo.txt").read_text() == "keep me"
    ours = tmp_path / "ours"
    assert main(["--out", str(ours), *flags]) == 0
    (ours / "stale.mp4").write_text("old")
    assert main(["--out", str(ours), *flags]) == 0
    assert not (ours / "stale.mp4").exists() and len(_rows(ours)) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["holiday", "ours"]


def test_a_failure_while_writing_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written: list[Path] = []

    def full(path: Path, data: bytes) -> int:
        written.append(path)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        with path.open("wb") as handle:
            return handle.write(data)

    monkeypatch.setattr(Path, "write_bytes", full)
    flags = [*TINY, "--clips", "3"]
    assert main(["--out", str(tmp_path / "out"), *flags]) == 1
    assert "No space left" in capsys.readouterr().err
    assert len(written) == 2 and not list(tmp_path.iterdir())


def test_out_below_a_file_is_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--out", str(tmp_path / "file" / "out"), "--workers", "1"]) == 1
    assert "cannot write" in capsys.readouterr().err
    assert main(["--out", str(tmp_path / "file"), "--workers", "1"]) == 2
    assert "is a file" in capsys.readouterr().err


def test_importing_the_package_loads_no_decoder() -> None:
    code = "import sys, shards.render; print('cv2' in sys.modules, 'av' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
