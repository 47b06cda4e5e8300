"""Detectors with a model file, on a tiny model made here: a bright square is its face."""

import hashlib
import struct

import numpy as np
import pytest

from shards.__main__ import main
from shards.ingest.detect import detector
from shards.ingest.extract import extract_face
from shards.ingest.models import KNOWN, ModelError, with_model
from shards.ingest.settings import IngestSettings
from shards.manifest import Manifest
from tests.shards.test_ingest import rows_of, save

# --- ONNX, as far as it is needed: protobuf fields by number (onnx.proto) ------------------------


def varint(n):
    n, out = n & (1 << 64) - 1, b""
    while True:
        low, n = n & 127, n >> 7
        out += bytes([low | (128 if n else 0)])
        if not n:
            return out


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(name, values):
    values = np.asarray(values, np.float32)
    dims = b"".join(field(1, n) for n in values.shape)
    return dims + field(2, 1) + field(8, name) + field(9, values.tobytes())


def node(kind, inputs, output, **ints):
    attributes = b"".join(
        field(5, field(1, k) + b"".join(field(8, n) for n in v) + field(20, 7))
        for k, v in ints.items()
    )
    names = b"".join(field(1, n) for n in inputs)
    return names + field(2, output) + field(4, kind) + attributes


def value(name, shape):
    dims = b"".join(field(1, field(1, n)) for n in shape)
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, dims)))


def tiny_yunet():
    """The twelve outputs of YuNet at strides 8, 16, 32; the first says how bright a cell is."""
    nodes, weights, outputs = [], [], []
    for kind, channels in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
        for stride in (8, 16, 32):
            name, shape = f"{kind}_{stride}", (channels, 3, stride, stride)
            bright = kind == "cls" and stride == 16
            kernel = np.full(shape, 1 / (3 * stride**2) if bright else 0)
            # Zero below 200, one above 210; every box is 16 · e^1 pixels wide.
            scale, bias = (0.1, -20) if bright else (0, {"obj": 1, "bbox": 1}.get(kind, 0))
            weights += [tensor(f"w_{name}", kernel * scale), tensor(f"b_{name}", [bias] * channels)]
            put = {"strides": (stride, stride), "kernel_shape": (stride, stride)}
            nodes.append(node("Conv", ["input", f"w_{name}", f"b_{name}"], name, **put))
            outputs.append(value(name, (1, channels, 320 // stride, 320 // stride)))
    graph = b"".join(field(1, n) for n in nodes) + field(2, "tiny")
    graph += b"".join(field(5, w) for w in weights) + field(11, value("input", (1, 3, 320, 320)))
    graph += b"".join(field(12, o) for o in outputs)
    return field(1, 8) + field(7, graph) + field(8, field(2, 13))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    path.write_bytes(tiny_yunet())
    return path


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def square(frames=24, *, left=120, top=60, size=(200, 320)):
    film = np.full((frames, *size, 3), 90, np.uint8)
    film[:, top : top + 32, left : left + 32] = 255
    return film


def test_the_float_in_the_model_is_little_endian():
    assert struct.pack("<f", 1.0) in tensor("x", [1.0])


def test_yunet_finds_the_square(model):
    (found,) = detector("yunet", str(model))(square()[0])
    middle = found[:2] + found[2:4] / 2
    assert np.abs(middle - (136, 76)).max() < 20 and found[2] == found[3] and found[4] > 0.9
    assert len(detector("yunet", str(model))(square()[0], least=200)) == 0
    assert len(detector("yunet", str(model))(np.full((200, 320, 3), 90, np.uint8))) == 0


def test_a_large_picture_is_looked_at_small_and_the_box_is_in_its_pixels(model):
    film = np.full((900, 1440, 3), 90, np.uint8)
    film[300:450, 900:1050] = 255
    (found,) = detector("yunet", str(model))(film)[:1]
    assert np.abs(found[:2] + found[2:4] / 2 - (975, 375)).max() < 90


def test_ingest_with_yunet_crops_there_and_says_which_model_it_was(model, tmp_path):
    (tmp_path / "v").mkdir()
    save(tmp_path / "v" / "a.mp4", square())
    asked = ("--detector", "yunet", "--detector-model", str(model), "--size", "64", "--jobs", "1")
    where = ("ingest", str(tmp_path / "v"), "--out", str(tmp_path / "o"))
    assert main([*where, *asked, "--detector-sha256", digest(model)]) == 0
    (row,) = rows_of(tmp_path / "o")
    left, top, width, height = row.record.track.box
    assert left < 120 and left + width > 152 and top < 60 and top + height > 92
    assert row.record.track.detector == "yunet" and row.record.track.found == 1
    clip = Manifest.open(tmp_path / "o").clip
    assert clip["detector_sha256"] == digest(model) and "detector_model" not in clip


def asked(**more):
    return IngestSettings(**{"detector": "yunet"} | more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({}, r"needs its model file: --detector-model FILE; take face_detection_yunet_2023mar"),
        ({"detector_model": "/nowhere.onnx"}, r"/nowhere.onnx cannot be read .*--detector-model"),
        ({"detector": "haar", "detector_model": "x"}, "haar takes no model file"),
    ],
)
def test_a_missing_model_is_told_with_the_fix(more, message):
    with pytest.raises(ModelError, match=message):
        with_model(asked(**more))


def test_a_wrong_model_is_told_with_the_fix(model, tmp_path):
    with pytest.raises(ModelError, match=r"none of the public yunet files; .*--detector-sha256"):
        with_model(asked(detector_model=str(model)))
    with pytest.raises(ModelError, match=r"has sha256 .* not 1234; copy it again"):
        with_model(asked(detector_model=str(model), detector_sha256="1234"))
    pointer = tmp_path / "p.onnx"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:8f23\n")
    with pytest.raises(ModelError, match="git lfs pull"):
        with_model(asked(detector_model=str(pointer)))


def test_a_file_that_is_no_model_is_refused_once_and_not_for_every_video(tmp_path, capsys):
    (tmp_path / "v").mkdir()
    save(tmp_path / "v" / "a.mp4", square())
    junk = tmp_path / "junk.onnx"
    junk.write_bytes(b"\x00" * 1000)
    more = ("--detector-model", str(junk), "--detector-sha256", digest(junk))
    out = ("--out", str(tmp_path / "o"))
    assert main(["ingest", str(tmp_path / "v"), *out, "--detector", "yunet", *more]) == 2
    assert "junk.onnx is no model that OpenCV" in capsys.readouterr().err


def test_a_deployed_model_says_which_file_it_needs(tmp_path):
    path = save(tmp_path / "a.mp4", square())
    known = next(iter(KNOWN["yunet"]))
    with pytest.raises(ModelError, match=f"with sha256 {known}"):
        extract_face(path, settings=asked(detector_sha256=known))
