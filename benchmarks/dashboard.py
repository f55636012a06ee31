"""Draw the dashboard of a real run: python -m benchmarks.dashboard --out docs/images/dashboard.png

A local cluster serves the demo on vLLM and scales from one replica to two. Clients stream and ask
for whole completions of several variants, some of them with mistakes, first few, then many, then
few. A Prometheus scrapes the cluster's nodes. At the end, ``scripts/draw_dashboard.py`` draws what
the dashboard shows of the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import tempfile
import time
from pathlib import Path

import click

from benchmarks.support.prometheus import prometheus
from client_lib import AsyncClient, DELClientError, private
from cluster.local import start_local
from deployments.settings import Settings, parse_settings
from scripts.draw_dashboard import draw

__all__ = ["main"]

PROMPTS = (
    "Dear sister, the doctor says that my fever will not go down before the end of the week",
    "The captain asked me in secret whether the ship could be sold before the winter",
    "Nobody but you may know that I have left the house and gone to the city alone",
)
VARIANTS = ("strict", "balanced", "open")
_SHARE_OF_MISTAKES = 0.05
_SCRAPE_S = 5  # as often as a local cluster exports
_EXPORTED_WITHIN_S = 10.0


def _settings() -> Settings:
    return parse_settings(
        {
            "scaling": {
                "min_replicas": 1,
                "max_replicas": 2,
                "target_ongoing_requests": 3,
                "max_ongoing_requests": 64,
                "upscale_delay_s": 2,
                "downscale_delay_s": 3600,
            }
        }
    )


async def _client(client: AsyncClient, seed: int, end: float) -> None:
    chooser = random.Random(seed)
    while time.monotonic() < end:
        prompt, variant = [private(chooser.choice(PROMPTS))], chooser.choice(VARIANTS)
        options = {"max_tokens": chooser.choice((16, 32, 64)), "ignore_eos": True}
        if chooser.random() < _SHARE_OF_MISTAKES:
            # Only the server knows that this is wrong: the id is beyond the model's vocabulary.
            options["stop_token_ids"] = [2**31 - 1]
        with contextlib.suppress(DELClientError):
            if chooser.random() < 0.5:
                await client.complete(prompt, variant=variant, **options)
            else:
                async with client.stream(prompt, variant=variant, **options) as stream:
                    async for _ in stream:
                        pass
        await asyncio.sleep(chooser.uniform(0.0, 0.4))


async def _load(url: str, seconds: float) -> None:
    """Run two clients, for the middle half of the time ten."""
    now = time.monotonic()
    async with AsyncClient(url) as client:

        async def later(seed: int) -> None:
            await asyncio.sleep(seconds / 4)
            await _client(client, seed, now + 0.75 * seconds)

        async with asyncio.TaskGroup() as group:
            for seed in range(2):
                group.create_task(_client(client, seed, now + seconds))
            for seed in range(2, 10):
                group.create_task(later(seed))


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The picture.")
@click.option("--seconds", default=180.0, show_default=True, help="Length of the load.")
@click.option("--chromium", help="Program of Chromium; found by itself if it is on the PATH.")
def main(out: Path, seconds: float, chromium: str | None) -> None:
    """Serve under load, and draw the dashboard of the run."""
    chromium = chromium or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise click.ClickException("Chromium must be on the PATH, or be named with --chromium")
    with (
        start_local(_settings()) as server,
        tempfile.TemporaryDirectory() as name,
        prometheus(Path(name), server.metrics, every_s=_SCRAPE_S) as url,
    ):
        began = time.monotonic()
        asyncio.run(_load(server.url, seconds))
        time.sleep(_EXPORTED_WITHIN_S)
        empty = draw(url, time.monotonic() - began, out, chromium)
    if empty:
        raise click.ClickException(f"these panels have no data: {', '.join(empty)}")


if __name__ == "__main__":
    main()
