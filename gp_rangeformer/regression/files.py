"""The files of a model's folder. It is two of them: ``model.safetensors`` and, with everything a reader wants to know,
``model.json``; others are written beside them.

No pickle: reading a model runs no code. The JSON holds the digests of the tensors and of itself, so that what is
damaged, edited or of another model is noticed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gpytorch
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from gp_rangeformer.atomic import WriteError, write_together
from gp_rangeformer.regression.errors import SavedModelError
from gp_rangeformer.version import own_version

FORMAT = 2
TENSORS, DESCRIPTION = "model.safetensors", "model.json"
_OF_TENSORS, _OF_ITSELF = "sha256 of model.safetensors", "sha256"
UNFINISHED = "unfinished.json"  # of a fit that runs, or was interrupted; of further ones with a number
HELD_OUT, NUMBERS, REPORT = "held_out.csv", "fit.json", "report.html"  # by the command line
_WRITTEN_TOGETHER = "written together, sha256"  # in fit.json


def prepared_folder(folder: Path) -> None:
    """Make ``folder`` if it is not there; its parent must be.

    :raises WriteError: it cannot be made or written to, or is no folder.
    """
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise WriteError(error.errno, error.strerror or str(error), str(folder)) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise WriteError(13, "Permission denied", str(folder))


def write_model(folder: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Both files, or on a full disk none. What was written beside a former model is removed.

    :raises WriteError: as :func:`prepared_folder`; the disk is full.
    """
    prepared_folder(folder)
    # Copies: modules share tensors (active_dims, tied parameters), which a file of tensors cannot.
    apart = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
    weights = safetensors.torch.save(apart)
    versions = {"gp-rangeformer": own_version(), "torch": torch.__version__, "gpytorch": gpytorch.__version__}
    content = {"format": FORMAT, "versions": versions, **description, _OF_TENSORS: hashlib.sha256(weights).hexdigest()}
    write_together({folder / TENSORS: weights, folder / DESCRIPTION: sealed(content)})
    for former in (HELD_OUT, NUMBERS, REPORT):
        with contextlib.suppress(OSError):
            (folder / former).unlink()


def written_together(folder: Path) -> dict[str, dict[str, str]]:
    """What ``fit.json`` says of the files beside it: digests of the model and of the held-out rows, where those are."""
    digests = {DESCRIPTION: json.loads((folder / DESCRIPTION).read_bytes())[_OF_ITSELF]}
    if (folder / HELD_OUT).is_file():
        digests[HELD_OUT] = hashlib.sha256((folder / HELD_OUT).read_bytes()).hexdigest()
    return {_WRITTEN_TOGETHER: digests}


def belongs_together(folder: Path) -> bool:
    """Whether model and held-out rows are those that ``fit.json`` speaks of; True where that says nothing of them."""
    try:
        known = json.loads((folder / NUMBERS).read_bytes())[_WRITTEN_TOGETHER]
    except (OSError, ValueError, KeyError, TypeError):
        return True
    return {_WRITTEN_TOGETHER: known} == written_together(folder)


def holds_model(folder: Path) -> bool:
    """Whether there is a file of one, which may be all that is left of it."""
    return any((folder / name).is_file() for name in (TENSORS, DESCRIPTION))


def is_kept(path: Path, folder: Path | None = None) -> bool:
    """Whether it is a file of a model, or of a fit that has not ended, in its folder.

    :param folder: that a model will be written to.
    """
    path = path.resolve()
    unfinished = unfinished_files(path.parent)
    if not (unfinished or holds_model(path.parent)) and (folder is None or folder.resolve() != path.parent):
        return False
    names = (TENSORS, DESCRIPTION, UNFINISHED, HELD_OUT, NUMBERS, REPORT)
    files = [*(path.parent / name for name in names), *unfinished]
    if path in files or _is_numbered(path):
        return True
    # The same file under another name: where MODEL.JSON is model.json.
    return any(path.exists() and file.exists() and path.samefile(file) for file in files)


def unfinished_files(folder: Path) -> list[Path]:
    """What fits that run there, or were interrupted, have kept: ``unfinished.json``, ``unfinished-1.json``, ..."""
    first = folder / UNFINISHED
    numbered = [path for path in folder.glob(f"{first.stem}-*{first.suffix}") if _is_numbered(path)]
    return [path for path in (first, *sorted(numbered, key=lambda path: (len(path.name), path))) if path.is_file()]


def _is_numbered(path: Path) -> bool:
    return re.fullmatch(r"unfinished-[1-9]\d*\.json", path.name) is not None


def is_unfinished(folder: Path) -> bool:
    """Whether a fit runs there, or was interrupted, that is later than the model, if there is one."""
    described = folder / DESCRIPTION
    kept = described.stat().st_mtime_ns if described.is_file() else 0
    return any(path.stat().st_mtime_ns >= kept for path in unfinished_files(folder))


def sealed(content: Mapping[str, Any]) -> bytes:
    """As JSON, with a digest of the rest.

    :raises ValueError: a number is not finite.
    """
    whole = {**content, _OF_ITSELF: _digest(content)}
    return (json.dumps(whole, indent=1, allow_nan=False) + "\n").encode()


def unsealed(file: bytes) -> dict[str, Any]:
    """What was :func:`sealed`, however it is indented now.

    :raises ValueError: it is damaged, or was changed.
    """
    content = json.loads(file.decode())
    if not isinstance(content, dict) or content.pop(_OF_ITSELF, None) != _digest(content):
        raise ValueError("it is not what was written")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_model(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description.

    :raises SavedModelError: a file is missing, damaged, of another model or of a newer version.
    """
    if folder.is_file():
        raise SavedModelError(f"{folder} is a file: name the folder that it is in")
    for file in (folder / DESCRIPTION, folder / TENSORS):
        if not file.is_file():
            if is_unfinished(folder):
                raise SavedModelError(f"{file} is missing: the fit has not ended; the same fit once more goes on")
            raise SavedModelError(
                f"{file} is missing: a model is a folder with {DESCRIPTION} and {TENSORS}, as `gp-rangeformer fit "
                "--out` and TableRegression.save write it"
            )
    described = folder / DESCRIPTION
    file = described.read_bytes()
    _check_format(described, file)
    try:
        content = unsealed(file)
    except ValueError as error:
        raise SavedModelError(f"{described} is damaged, or was edited ({error}): restore it or fit again") from error
    weights = (folder / TENSORS).read_bytes()
    if hashlib.sha256(weights).hexdigest() != content[_OF_TENSORS]:
        raise SavedModelError(
            f"{folder / TENSORS} does not belong to the {DESCRIPTION} beside it, or is damaged: restore both or fit "
            "again"
        )
    try:
        return safetensors.torch.load(weights), content
    except safetensors.SafetensorError as error:
        raise SavedModelError(f"{folder / TENSORS} is damaged ({error}): restore it or fit again") from error


def _check_format(described: Path, file: bytes) -> None:
    """Before its digest, which another version may make otherwise."""
    try:
        content = json.loads(file.decode())
        form, version = content["format"], content["versions"]["gp-rangeformer"]
    except (ValueError, KeyError, TypeError) as error:
        raise SavedModelError(f"{described} is damaged ({error!r}): restore it or fit again") from error
    if form != FORMAT:
        raise SavedModelError(
            f"{described} has format {form}, of gp-rangeformer {version}; this version reads {FORMAT}: "
            "pip install -U gp-rangeformer, or fit again"
        )
