"""Model files of detectors, which users bring: whether it is the file it is taken for.

Owns the hashes of the public files. Knows no detector and loads no library for one.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cache
from pathlib import Path

from shards.ingest.settings import IngestSettings

# sha256 as in the Git LFS pointers of github.com/opencv/opencv_zoo, models/face_detection_yunet.
KNOWN = {
    "yunet": {
        "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4": "2023mar",
        "d0405ddda91a261af340e087219dfbac26cea1575aab2ccb7f2ed41e20708a82": "2023mar_int8",
        "49f000ec501fef24739071fc7e68267d32209045b6822c0c72dce1da25726f10": "2023mar_int8bq",
    }
}
WHERE = {
    "yunet": "face_detection_yunet_2023mar.onnx of https://github.com/opencv/opencv_zoo "
    "(models/face_detection_yunet, with Git LFS)"
}
LARGEST = 1 << 30


class ModelError(ValueError):
    """A model file that cannot be used; the message names the fix."""


def with_model(settings: IngestSettings) -> IngestSettings:
    """The settings with the absolute path and the hash of their model file, once it is checked.

    Raises ModelError where the detector needs a file and it is not the right one.
    """
    name, path = settings.detector, settings.detector_model
    if name not in KNOWN:
        if path or settings.detector_sha256:
            raise ModelError(f"detector {name} takes no model file; leave out --detector-model")
        return settings
    if not path:
        wanted = f" with sha256 {settings.detector_sha256}" if settings.detector_sha256 else ""
        raise ModelError(
            f"detector {name} needs its model file{wanted}: --detector-model FILE; "
            f"take {WHERE[name]}"
        )
    file = Path(path).absolute()
    digest = hashlib.sha256(model_bytes(str(file))).hexdigest()
    _check_hash(name, file, digest, settings.detector_sha256.lower())
    return replace(settings, detector_model=str(file), detector_sha256=digest)


def _check_hash(name: str, file: Path, digest: str, asked: str) -> None:
    if asked and digest != asked:
        raise ModelError(
            f"{file} has sha256 {digest}, not {asked}; copy it again, or name the file that has it "
            "(in a new ingest, correct --detector-sha256)"
        )
    if not asked and digest not in KNOWN[name]:
        raise ModelError(
            f"{file} (sha256 {digest}) is none of the public {name} files; take {WHERE[name]}, or "
            f"if it is the file you mean, add --detector-sha256 {digest}"
        )


@cache
def model_bytes(path: str) -> bytes:
    """The content of a model file. Raises ModelError."""
    file = Path(path)
    try:
        if file.stat().st_size > LARGEST:
            raise ModelError(f"{file} is larger than 1 GiB; no model of a detector is")
        data = file.read_bytes()
    except OSError as error:
        raise ModelError(
            f"model file {file} cannot be read ({error.strerror}); correct --detector-model"
        ) from None
    if data.startswith(b"version https://git-lfs"):
        raise ModelError(f"{file} is a Git LFS pointer, not the model; run `git lfs pull` there")
    return data
