"""The predictor: the same preprocessing as evaluation, and a model that runs by itself."""

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pandas as pd
import pytest
import torch

from finetune.answers import PredictConfig, told
from finetune.answers import run as run_answers
from finetune.mixing import MixConfig
from finetune.models.classifier import Classifier
from finetune.outputs import Outputs
from finetune.predictor import Prediction, Predictor, PredictorConfig, _note, save_predictor
from finetune.predictor_config import other_crops, weights_of
from finetune.predictor_package import (
    CODE,
    ENTRY,
    package,
    predict_videos,
    stream_predictions,
)
from finetune.task import ClassifyTask
from launch import registry
from launch.record import create_run
from launch.tracking import TrackingConfig
from mira.encoder import EncoderConfig
from shards.augment import ViewConfig
from shards.batch import Clip, collate
from shards.ingest.settings import IngestSettings
from shards.manifest import Manifest, write_manifest
from shards.stream import DataConfig

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared/data/videos"
LABELS = ("calm", "glad", "cross")
ENCODER = EncoderConfig(
    image_size=32, frames=8, patch_size=16, dim=24, depth=2, heads=2, attention="mira_flashlite"
)
CONFIG = PredictorConfig(
    encoder=ENCODER,
    labels=LABELS,
    stride=2,
    views=ViewConfig(temporal=2, spatial=3),
    face=IngestSettings(size=48, detector="none", min_frames=4),
)


def classifier(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    model = Classifier(ENCODER, len(LABELS))
    torch.nn.init.normal_(model.head.weight, std=1.0)  # else all classes are nearly equal
    return model


def write_video(path: Path, *, frames: int = 40, fps: int = 20, seed: int = 0) -> str:
    """A square that moves over a gradient."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for t in range(frames):
            picture = np.zeros((64, 96, 3), np.uint8)
            picture[..., 0] = np.linspace(0, 255, 96)
            picture[10:30, (t + 7 * seed) % 70 : (t + 7 * seed) % 70 + 20] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return str(path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "best"
    return save_predictor(folder, classifier().state_dict(), CONFIG, {"step": 3})


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("videos")
    return [write_video(folder / f"{i}.mp4", seed=i) for i in range(2)]


@pytest.fixture(scope="module")
def packed(saved, tmp_path_factory) -> Path:
    return package(saved, tmp_path_factory.mktemp("packed") / "model")


@pytest.fixture(scope="module")
def store(packed, tmp_path_factory) -> str:
    """URI of a store in which the model is models:/expressions@champion."""
    output = tmp_path_factory.mktemp("store") / "out"
    run = create_run(TrackingConfig(), output=str(output), config={}, origin={})
    weights = weights_of(packed)
    how = {"kind": "predictor", "weights": weights}
    registry.publish(run, packed, **how, name="expressions", alias="champion")
    return run.uri


@pytest.fixture
def predictor(saved) -> Predictor:
    return Predictor.load(saved, device="cpu")


def answers(predictor: Predictor, videos, **options) -> list[Prediction]:
    return list(predictor.predict(videos, **options))


def assert_same(one: Prediction, other: Prediction) -> None:
    assert replace(one, video="", probabilities=None, probability=None) == replace(
        other, video="", probabilities=None, probability=None
    )
    assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def test_an_answer_is_complete(predictor, videos):
    [answer] = answers(predictor, videos[:1])
    assert answer.video == videos[0]
    assert list(answer.probabilities) == list(LABELS)
    assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert answer.label == max(answer.probabilities, key=answer.probabilities.get)
    assert answer.probability == answer.probabilities[answer.label]
    assert sum(answer.importance) == pytest.approx(1, abs=1e-5)
    assert len(answer.times) == len(answer.importance)
    assert list(answer.times) == sorted(set(answer.times))
    assert answer.times[0] >= 0 and answer.times[-1] < 40 / 20
    left, top, width, height = answer.box
    assert (width, height) == (64, 64)
    assert (left, top) == (16, 0)
    assert answer.reason is None


def test_inference_and_evaluation_agree_on_every_pixel_and_probability(predictor):
    frames = np.random.default_rng(0).integers(0, 256, (40, 48, 48, 3), dtype=np.uint8)
    views = predictor.views(frames)
    batch = collate([Clip(views.pixels, 0, 0, "clip")], 1, views=6, frames=8, size=32)
    task = ClassifyTask(predictor.model, MixConfig(mixup=0.0, cutmix=0.0)).eval()
    with torch.no_grad():
        expected = task.predict(batch)[0]
    got, importance = predictor.explain(views.pixels)
    assert torch.allclose(got, expected, atol=1e-6)
    assert importance.shape == (6, 8)
    assert torch.allclose(importance.sum(1), torch.ones(6), atol=1e-5)


def test_the_views_are_those_of_the_evaluation_loader(predictor):
    """Through the real loader, on the frames that it decodes."""
    frames, loader_pixels = loader_views()
    assert (predictor.views(frames).pixels == loader_pixels).all()


def loader_views():
    """Frames of a stored clip, and the views [6, T, h, w, 3] that evaluation makes of it."""
    from shards.clips import Clips
    from shards.frames import decode
    from shards.order import Slot
    from shards.schema import Record
    from tests.shards.make import encode

    pictures = np.random.default_rng(0).integers(0, 256, (40, 48, 48, 3), dtype=np.uint8)
    video = encode(pictures)
    frames = decode(video, lambda n: np.arange(n))

    class OneClip:
        def path(self, shard):
            return Path("shard-000000.tar")

        def skips(self, shard, key):
            return False

        def row(self, shard, sample):
            record = Record(clip_id="a", path="a", fps=20.0, num_frames=len(frames))
            return type("Row", (), {"key": "a", "record": record})

        def label(self, record):
            return 0

        def video(self, shard, row):
            return video

    slot = Slot(**dict.fromkeys(Slot._fields, 0))
    clips = Clips(OneClip(), frames=8, stride=2, size=32, how=CONFIG.views)
    loaded = clips[slot]
    assert loaded[1] is None
    return frames, loaded[0].pixels


def test_frames_of_a_tubelet_share_its_importance_and_repeated_ones_add_up(predictor):
    short = np.zeros((5, 48, 48, 3), np.uint8)  # fewer frames than the model takes
    views = predictor.views(short)
    _, importance = predictor.explain(views.pixels)
    assert torch.equal(importance[:, 0::2], importance[:, 1::2])
    from finetune.predictor import _by_frame

    merged = _by_frame(views.indices, importance.numpy())
    assert list(merged) == [0, 1, 2, 3, 4]
    assert sum(merged.values()) == pytest.approx(1, abs=1e-5)


def test_bytes_and_path_give_the_same_answer(predictor, videos):
    by_path, by_bytes = answers(predictor, [videos[0], Path(videos[0]).read_bytes()])
    assert by_bytes.video == "bytes"
    assert_same(by_path, by_bytes)


def test_a_bad_video_gets_a_reason_and_the_others_their_answers(predictor, videos, tmp_path):
    (tmp_path / "text.mp4").write_text("not a video")
    given = [videos[0], str(tmp_path / "text.mp4"), b"", "x" * 5000, videos[1]]
    found = answers(predictor, given)
    assert [answer.label is not None for answer in found] == [True, False, False, False, True]
    for bad in found[1:4]:
        assert bad.reason and bad.action
        assert bad.probabilities is None
    assert_same(found[0], answers(predictor, videos[:1])[0])


@pytest.mark.skipif(not REAL.is_dir(), reason="the real videos are not in this repository")
def test_a_video_without_a_face_and_a_folder_get_advice_that_fits_a_question(tmp_path):
    """Ingest would name its options, which whoever asks a model does not have."""
    predictor = Predictor(classifier(), replace(CONFIG, face=IngestSettings(size=64)), device="cpu")
    none = str(REAL.parent / "bad/no_face.mp4")
    faceless, folder = answers(predictor, [none, str(tmp_path)])
    assert faceless.reason.startswith("no face") and faceless.action == "leave it out"
    assert folder.reason == "is a folder" and "path on the machine" in folder.action


def test_an_answer_says_what_it_did_not_look_at(predictor, packed, videos, tmp_path):
    with av.open(videos[0]) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][25]
    data = bytearray(Path(videos[0]).read_bytes())
    data[packet.pos + 8 : packet.pos + packet.size] = bytes(packet.size - 8)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(data)
    sound, damaged = answers(predictor, [videos[0], str(broken)])
    assert sound.note is None
    assert damaged.label in LABELS and damaged.note.startswith("kept frames 0-")
    assert told(damaged)[-1] == f"note: {damaged.note}"
    [asked] = predict_videos(packed, [str(broken)])
    assert asked.note == damaged.note
    face = SimpleNamespace(damaged=None, people=3, other_shots=((0.0, 1.5), (4.0, 6.25)))
    assert _note(face) == (
        "3 people are seen, the answer is about the one in the box; "
        "other shots were not looked at: 0.00 to 1.50 s, 4.00 to 6.25 s"
    )


def test_a_picture_is_made_when_it_is_asked_for(predictor, videos):
    [answer] = answers(predictor, videos[:1], pictures=True)
    assert answer.picture.startswith(b"\x89PNG")


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real videos are not at {REAL}")
def test_faces_in_real_videos_are_found_and_answered():
    face = IngestSettings(size=64)
    predictor = Predictor(classifier(), replace(CONFIG, face=face), device="cpu")
    names = ["pyfeat_single_face.mp4", "grid_bbaf2n.mpg", "intel_no.mkv"]
    found = answers(predictor, [str(REAL / name) for name in names])
    for answer in found:
        assert answer.label in LABELS, answer.reason
        _, _, width, height = answer.box
        assert width == height >= 50
        assert sum(answer.importance) == pytest.approx(1, abs=1e-5)


def test_a_configuration_survives_json():
    assert PredictorConfig.from_json(json.loads(json.dumps(CONFIG.to_json()))) == CONFIG


def test_faces_are_cropped_as_in_the_shards_that_were_trained_on(tmp_path):
    clip = {"size": 96, "codec": "h264", "detector": "none", "margin": 0.4, "fps": "constant"}
    write_manifest(tmp_path, [], labels=LABELS, clip=clip, created_by={})
    data = DataConfig(shards=(str(tmp_path),), stride=None, views=ViewConfig(temporal=3))
    config = PredictorConfig.of(encoder=ENCODER, data=data, outputs=Outputs(LABELS))
    assert (config.face.size, config.face.detector, config.face.margin) == (96, "none", 0.4)
    assert (config.stride, config.views) == (None, ViewConfig(temporal=3))


def test_folders_that_were_cropped_otherwise_are_told(tmp_path):
    made = []
    for name, clip in (("a", {"detector": "none"}), ("b", {"detector": "haar"})):
        (tmp_path / name).mkdir()
        clip |= {"size": 96, "margin": 0.4, "crf": len(made)}
        write_manifest(tmp_path / name, [], labels=LABELS, clip=clip, created_by={})
        made.append(Manifest.open(tmp_path / name))
    [line] = other_crops(made)
    assert f"{tmp_path}/b was cropped with detector haar, {tmp_path}/a with none" in line
    assert other_crops(made[:1]) == other_crops([made[1], made[1]]) == []


def test_an_answer_needs_no_record_and_says_what_it_takes_for_the_face(
    packed, videos, tmp_path, capsys
):
    asked = PredictConfig(str(packed), (videos[0],), out=str(tmp_path / "out"), record=False)
    [answer] = run_answers(asked)
    assert answer.label in LABELS and (tmp_path / "out/predictions.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "no database was made"
    assert "takes the middle square of a video for the face" in capsys.readouterr().err


def test_a_folder_of_another_kind_is_refused(tmp_path):
    from mira.weights import save_artifact

    save_artifact(tmp_path / "encoder", classifier().state_dict(), {"dim": 24}, {})
    with pytest.raises(ValueError, match="not the configuration of a predictor"):
        Predictor.load(tmp_path / "encoder")
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        Predictor.load(tmp_path)


def test_a_packed_model_opens_like_the_folder_it_was_made_of(packed, predictor, videos):
    assert_same(
        answers(Predictor.load(packed, device="cpu"), videos[:1])[0],
        answers(predictor, videos[:1])[0],
    )


def test_a_packed_model_holds_our_code_without_caches_and_no_pickle(packed):
    names = {p.relative_to(packed).as_posix() for p in packed.rglob("*") if p.is_file()}
    assert {f"code/{name}/__init__.py" for name in CODE} <= names
    assert not [n for n in names if "__pycache__" in n or n.endswith((".pyc", ".pkl"))]
    assert not [n for n in names if "test" in n or n.startswith("code/launch")]
    requirements = (packed / "requirements.txt").read_text().splitlines()
    assert f"torch=={torch.__version__.partition('+')[0]}" in requirements
    assert all("==" in line and "+" not in line for line in requirements)


BARE = """
import importlib, json, sys
checkout, uri, videos, reference = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4]
sys.meta_path = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
sys.path_hooks = [h for h in sys.path_hooks if "editable" not in repr(h).lower()]
sys.path = [p for p in sys.path if p and not p.startswith(checkout + "/.git") and p != checkout
            and "editable" not in p]
sys.path_importer_cache.clear()
for name in ("finetune", "mira", "kernels", "shards", "launch", "pretrain"):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} is importable: this process is not bare")
import mlflow
mlflow.set_tracking_uri(uri)
model = mlflow.pyfunc.load_model(reference)
answers = model.predict(videos)
ours = {n: m.__file__ for n, m in sys.modules.items() if n in ("finetune", "mira", "shards")}
print(json.dumps([answers, ours, "launch" in sys.modules]))
"""


def test_a_registered_model_runs_where_the_checkout_is_not_to_be_found(
    store, predictor, videos, tmp_path
):
    arguments = [str(ROOT), store, json.dumps(videos), "models:/expressions@champion"]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env |= {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", BARE, *arguments],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found, ours, launch = json.loads(done.stdout.splitlines()[-1])
    assert not launch
    assert all(str(ROOT) not in file for file in ours.values())
    for got, expected in zip(found, answers(predictor, videos), strict=True):
        assert got["label"] == expected.label
        assert got["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
        assert got["importance"] == pytest.approx(expected.importance, abs=1e-5)


TWO = """
import sys
import mlflow.pyfunc
for folder in sys.argv[1:]:
    try:
        mlflow.pyfunc.load_model(folder)
    except Exception as error:
        print(error)
    else:
        print("loaded")
"""


def test_a_second_model_with_other_code_is_refused_by_a_process_that_runs_the_first(
    packed, tmp_path
):
    """It answered with the first one's code; also where that lacks what the entry point imports."""
    same, other = (shutil.copytree(packed, tmp_path / name) for name in ("same", "other"))
    predictor = other / "code/finetune/predictor.py"
    predictor.write_text(predictor.read_text().replace("Marks", "Moments"))
    entry = other / ENTRY.name
    entry.write_text(entry.read_text().replace("Marks", "Moments"))
    done = subprocess.run(
        [sys.executable, "-P", "-c", TWO, *map(str, (packed, same, other))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    first, second, third = done.stdout.splitlines()
    assert first == second == "loaded", done.stderr
    assert f"{other} brings another finetune/predictor.py" in third
    assert f"the package finetune of {packed}/code/finetune" in third
    assert "a process of its own" in third


def test_what_was_answered_outlives_the_video_that_breaks_the_model(packed, videos, tmp_path):
    shutil.copytree(packed, tmp_path / "model")
    entry = tmp_path / "model" / ENTRY.name
    breaks = '    if str(given).endswith("1.mp4"):\n        os._exit(9)\n    given = os.fspath'
    entry.write_text(entry.read_text().replace("    given = os.fspath", breaks))
    asked = PredictConfig(
        str(tmp_path / "model"), (*videos, videos[0]), out=str(tmp_path / "out"), record=False
    )
    with pytest.raises(ValueError, match="failed, with 1 of 3 videos answered: exit status 9"):
        run_answers(asked)
    [kept] = json.loads((tmp_path / "out/predictions.json").read_text())
    assert kept["video"] == videos[0] and kept["label"] in LABELS


def test_a_video_whose_name_is_not_utf8_is_answered_and_recorded(packed, videos, tmp_path):
    name = os.fsdecode(b"caf\xe9.mp4")
    shutil.copy(videos[0], tmp_path / name)
    arguments = [str(packed), str(tmp_path / name), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch/predict.py"), *arguments],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert b"caf\\udce9.mp4: " in done.stdout
    [kept] = json.loads((tmp_path / "out/predictions.json").read_text())
    assert kept["video"] == str(tmp_path / name) and kept["label"] in LABELS


def test_a_model_is_asked_in_a_process_of_its_own(store, predictor, videos, tmp_path):
    (tmp_path / "text.mp4").write_text("not a video")
    given = [videos[0], Path(videos[1]).read_bytes(), str(tmp_path / "text.mp4")]
    name = "models:/expressions@champion"
    found = predict_videos(name, given, tracking_uri=store, pictures=True)
    for got, expected in zip(found, answers(predictor, videos), strict=False):
        assert got.label == expected.label
        assert got.times == pytest.approx(expected.times)
        assert got.box == expected.box
        assert got.picture.startswith(b"\x89PNG")
    assert found[2].reason


def test_the_entry_point_takes_any_table_and_any_cell(saved, videos):
    from finetune.predictor_pyfunc import ExpressionModel

    model = ExpressionModel()
    model.load_context(SimpleNamespace(artifacts={"predictor": str(saved)}))

    def ask_model(table):
        return [answer["label"] for answer in model.predict(None, pd.DataFrame(table))]

    expected = ask_model({"video": videos})
    assert None not in expected
    assert ask_model(videos) == expected
    assert ask_model({"video": videos, "onset": [None, float("nan")]}) == expected
    assert ask_model({"video": [videos]}) == expected  # a cell that holds a list
    assert ask_model({"video": [videos[0], float("nan")]}) == [expected[0], None]
    with pytest.raises(ValueError, match="column `video`"):
        ask_model({"a": videos, "b": videos})
    with pytest.raises(ValueError, match="columns video, subject; .*nothing else"):
        ask_model({"video": videos, "subject": ["a", "b"]})


@pytest.fixture(scope="module")
def loaded(packed):
    """As `mlflow.pyfunc` hands questions on; this process runs the very code that was packed."""
    import mlflow.pyfunc

    return mlflow.pyfunc.load_model(str(packed))


def test_videos_are_taken_in_any_form(loaded, videos):
    expected = [answer["label"] for answer in loaded.predict(videos)]
    forms = [
        tuple(videos),
        [Path(video) for video in videos],
        [Path(video).read_bytes() for video in videos],
        np.array(videos),
        np.array(videos)[:, None],
        pd.Series(videos, index=[5, 6]),
        {"video": videos},
        [{"video": video} for video in videos],
        pd.DataFrame({"path": videos}),
    ]
    for form in forms:
        assert [answer["label"] for answer in loaded.predict(form)] == expected, form
    assert loaded.predict(Path(videos[0]))[0]["label"] == expected[0]
    assert loaded.predict([]) == []
    with pytest.raises(ValueError, match="2-d"):
        loaded.predict(np.zeros((1, 8, 32, 32, 3), np.uint8))


def test_onset_and_apex_are_told_row_by_row(loaded, videos):
    """They were dropped in silence, and as params held for every row."""
    table = {"video": [*videos, videos[0]], "onset": [0.1, 0.2, None], "apex": [0.5, 0.6, None]}
    for form in (table, pd.DataFrame(table)):
        refused = ["does not look at them" in (a["reason"] or "") for a in loaded.predict(form)]
        assert refused == [True, True, False]
    with pytest.raises(ValueError, match="of one video, and 2 are asked about: .* columns"):
        loaded.predict(videos, params={"onset": 0.1, "apex": 0.5})
    with pytest.raises(ValueError, match="one of onset and apex is told"):
        loaded.predict({"video": videos, "onset": [0.1, 0.2]})


@pytest.mark.slow
def test_a_model_is_served_over_http(packed, predictor, videos, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(packed)]
    command += ["--env-manager", "local", "--port", str(port), "--workers", "1"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # MLflow calls uvicorn
    env = os.environ | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "PATH": path}
    server = subprocess.Popen(command, cwd=tmp_path, env=env, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(f"{url}/ping", server)
        data = base64.b64encode(Path(videos[1]).read_bytes()).decode()
        sent = [videos[0], f"data:video/mp4;base64,{data}", "data:video/mp4;base64,?"]
        by_list = ask(f"{url}/invocations", {"inputs": sent})
        records = [{"video": video} for video in sent]
        by_table = ask(f"{url}/invocations", {"dataframe_records": records})
        assert by_list == by_table
        for got, expected in zip(by_list, answers(predictor, videos), strict=False):
            assert got["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
        assert "base64" in by_list[2]["reason"]
        pictured = {"inputs": sent[:1], "params": {"pictures": True}}
        picture = ask(f"{url}/invocations", pictured)[0]["picture"]
        assert base64.b64decode(picture).startswith(b"\x89PNG")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def ask(url: str, question: dict) -> list[dict]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(question).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)["predictions"]


def wait_for(url: str, server: subprocess.Popen, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            time.sleep(0.3)
    raise TimeoutError(url)


def test_onset_and_apex_are_told_together_and_of_one_video(tmp_path):
    with pytest.raises(ValueError, match="onset and apex go together"):
        run_answers(PredictConfig("m", ("a.mp4",), out=str(tmp_path), onset=0.1))
    asked = PredictConfig("m", ("a.mp4", "b.mp4"), out=str(tmp_path), onset=0.1, apex=0.2)
    with pytest.raises(ValueError, match="of one video, 2 are named"):
        run_answers(asked)


def test_a_network_that_does_not_look_at_onset_and_apex_says_so(
    predictor, packed, videos, tmp_path, capsys
):
    [answer] = answers(predictor, videos[:1], marks=(0.1, 0.5))
    assert "a video transformer does not look at them" in answer.reason and answer.label is None
    asked = PredictConfig(str(packed), (videos[0],), out=str(tmp_path), onset=0.1, apex=0.5)
    with pytest.raises(ValueError, match="none of the 1 videos could be used"):
        run_answers(asked)
    told = capsys.readouterr().err
    assert f"{videos[0]}: onset and apex are given" in told and "HSTA or FaceSleuth-R" in told


def test_a_model_that_cannot_be_loaded_says_why(tmp_path):
    with pytest.raises(
        ValueError, match="(?s)nothing failed, with 0 of 1 .*nothing.*Its process printed"
    ):
        list(stream_predictions(tmp_path / "nothing", ["a.mp4"]))
