"""A known model on this machine: if it is missing, it is downloaded, with its license shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from delctl.terminal import bytes_words

if TYPE_CHECKING:
    from rich.console import Console


def fetch_model(name: str, shown_on: Console) -> Path:
    """Return the directory of a known model, downloaded and converted unless the cache holds it.

    Raises DownloadError and ModelError as :func:`del_core.lm.known.get_model`.
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from del_core.lm.known import MODELS, cached_model, get_model

    found = cached_model(name)
    if found is not None:
        return found
    known = MODELS[name]
    shown_on.print(f"{known.title}, license {known.license}, {bytes_words(known.size)} to download")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=shown_on) as bar:
        task = bar.add_task("Downloading", total=known.size)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            if done == total:
                bar.update(task, description="Converting")

        return get_model(name, progress=progress)
