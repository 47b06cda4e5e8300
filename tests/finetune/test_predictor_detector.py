"""Videos asked about whose training clips were cropped by a detector with a model file."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from finetune.answers import PredictConfig
from finetune.answers import run as run_answers
from finetune.predictor import Predictor, PredictorConfig, save_predictor
from finetune.predictor_package import package
from shards.ingest.models import ModelError
from shards.ingest.settings import IngestSettings
from tests.finetune.test_predictor import CONFIG, classifier
from tests.shards.test_detectors import square, tiny_yunet
from tests.shards.test_ingest import save


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("detector") / "tiny.onnx"
    path.write_bytes(tiny_yunet())
    return path


@pytest.fixture(scope="module")
def saved(detector, tmp_path_factory) -> Path:
    """A predictor whose clips were cropped by that detector."""
    digest = hashlib.sha256(detector.read_bytes()).hexdigest()
    face = IngestSettings(size=48, detector="yunet", detector_sha256=digest, min_frames=4)
    folder = tmp_path_factory.mktemp("saved") / "best"
    return save_predictor(folder, classifier().state_dict(), replace(CONFIG, face=face), {})


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> str:
    return str(save(tmp_path_factory.mktemp("video") / "a.mp4", square()))


def test_the_named_file_finds_the_face(saved, detector, video):
    predictor = Predictor.load(saved, device="cpu", detector_model=detector)
    [answer] = predictor.predict([video])
    left, top, width, height = answer.box
    assert left < 120 and left + width > 152 and top < 60 and top + height > 92
    assert answer.label in CONFIG.labels


def test_without_the_file_the_answer_says_which_one(saved, detector, video):
    predictor = Predictor.load(saved, device="cpu")  # measuring on shards needs none
    [answer] = predictor.predict([video])
    digest = predictor.config.face.detector_sha256
    assert f"detector yunet needs its model file with sha256 {digest}" in answer.reason
    assert "--detector-model FILE" in answer.reason and "detector_model=FILE" in answer.action


def test_another_file_is_refused_at_once(saved, tmp_path):
    other = tmp_path / "other.onnx"
    other.write_bytes(b"another")
    with pytest.raises(ModelError, match=r"other.onnx has sha256 .*, not .*; copy it again"):
        Predictor.load(saved, detector_model=other)
    with pytest.raises(ModelError, match=r"nowhere.onnx cannot be read .*--detector-model"):
        Predictor.load(saved, detector_model=tmp_path / "nowhere.onnx")
    plain = save_predictor(tmp_path / "plain", classifier().state_dict(), CONFIG, {})
    with pytest.raises(ModelError, match="detector none takes no model file"):
        Predictor.load(plain, detector_model=other)


def test_the_place_of_the_file_is_not_kept(saved, detector):
    config = Predictor.load(saved, device="cpu").config
    assert config.face.detector_model == ""
    assert PredictorConfig.from_json(config.to_json()) == config


def test_a_packed_model_is_told_on_the_command_line(saved, detector, video, tmp_path, capsys):
    model = str(package(saved, tmp_path / "model"))
    asked = PredictConfig(model, (video,), out=str(tmp_path / "out"), detector_model=str(detector))
    [answer] = run_answers(asked)
    [direct] = Predictor.load(saved, device="cpu", detector_model=detector).predict([video])
    assert (answer.label, answer.box) == (direct.label, direct.box)
    with pytest.raises(ValueError, match="none of the 1 videos could be used"):
        run_answers(replace(asked, detector_model=None))
    told = capsys.readouterr().err
    assert "a.mp4: faces are found as in the training clips, and detector yunet needs" in told
