"""``delctl serve``: a model and its bundle, or several, on this machine, until Ctrl-C."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from delctl.local import PROXY_WORDS, running_server
from delctl.options import json_option
from delctl.places import PLACE, bundle_place, model_place
from delctl.terminal import console, print_json, printable

if TYPE_CHECKING:
    from cluster.local import LocalServer
    from del_core.bundle import Bundle
    from deployments.settings import ServedApplication, Settings


@click.command()
@click.option("--bundle", type=bundle_place, metavar=PLACE, help="The bundle to serve.  [default: demo]")
@click.option("--model", type=model_place, metavar=PLACE, help="Its base model.  [default: demo, with the demo bundle]")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML file of settings, which the other options override, or of several applications, each with its model "
    "and route_prefix (docs/reference/configuration.md).",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is every one.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free port.")
@click.option("--replicas", type=click.IntRange(1), metavar="N", help="Exactly N replicas, without autoscaling.")
@click.option("--max-replicas", type=click.IntRange(1), metavar="N", help="Scale with the load up to N replicas.")
@click.option(
    "--proxy",
    type=click.Choice(["auto", "haproxy", "serve"]),
    default="auto",
    show_default=True,
    help="HTTP proxy in front: HAProxy (faster), Ray Serve's own, or HAProxy where it can run.",
)
@json_option
def serve(
    bundle: Path | None,
    model: Path | None,
    config: Path | None,
    host: str,
    port: int,
    replicas: int | None,
    max_replicas: int | None,
    proxy: Literal["auto", "haproxy", "serve"],
    as_json: bool,
) -> None:
    """Serve a model and its bundle on this machine until Ctrl-C.

    A config file may name several, which are then served side by side, each under its own path.
    Everything runs on a Ray cluster of its own, started for this and stopped with it.
    """
    if replicas is not None and max_replicas is not None:
        raise click.UsageError("--replicas and --max-replicas exclude each other")
    served = resolve_served(bundle, model, config, replicas, max_replicas)
    with contextlib.suppress(KeyboardInterrupt), running_server(served, host=host, port=port, proxy=proxy) as server:
        if as_json:
            print_json(announcement(server))
        else:
            announce(server, host)
        watch(server)
        server.stop(keep_files=True)
        raise click.ClickException(f"the server has ended by itself; its logs are in {server.directory}")


def watch(server: LocalServer, *, every_s: float = 5.0, line_every_s: float = 60.0) -> None:
    """Show the tokens per second until the server ends by itself.

    A terminal has a status line; elsewhere a line is printed after each interval that ends with
    requests. The rate is that of the last ten seconds.
    """
    from cluster.deploy import replica_loads

    def read() -> tuple[float, float]:
        loads = replica_loads(server.metrics).values()
        return sum(one.tokens_per_s or 0.0 for one in loads), sum(one.requests or 0.0 for one in loads)

    messages, words = console(stderr=True), "{:.1f} tokens/s, {:.0f} in flight"
    if messages.is_terminal:
        with messages.status("no tokens yet", spinner="line") as status:
            while not server.wait(every_s):
                status.update(words.format(*read()))
        return
    while not server.wait(line_every_s):
        if any(found := read()):
            messages.print(words.format(*found))


def resolve_served(
    bundle: Path | None, model: Path | None, config: Path | None, replicas: int | None, max_replicas: int | None
) -> Settings | Sequence[ServedApplication]:
    """Return the settings of file or defaults with the options applied, or the applications."""
    from del_core import demo
    from deployments.settings import DEMO, Settings, load_config, parse_settings

    named = load_config(config) if config else Settings()
    if not isinstance(named, Settings):
        options = {"--bundle": bundle, "--model": model, "--replicas": replicas, "--max-replicas": max_replicas}
        for option, value in options.items():
            if value is not None:
                raise click.UsageError(f"{option} is for one model, and {config} names applications with their own")
        return named
    values: dict[str, Any] = named.model_dump()
    if bundle is not None:
        # A model named in the file belongs to the bundle of the file.
        values |= {"bundle": DEMO if bundle == demo.bundle_path() else str(bundle.resolve()), "base_model": None}
    if model is not None:
        values["base_model"] = str(model.resolve())
    if values["base_model"] is None and values["bundle"] != DEMO:
        raise click.UsageError("--bundle needs --model, the directory of the language model that it was made for")
    if replicas is not None:
        values["scaling"] |= {"min_replicas": replicas, "max_replicas": replicas}
    if max_replicas is not None:
        values["scaling"] |= {"min_replicas": min(values["scaling"]["min_replicas"], max_replicas)}
        values["scaling"] |= {"max_replicas": max_replicas}
    return parse_settings(values)


def announcement(server: LocalServer) -> dict[str, Any]:
    """Return the URLs, models and variants of a running server, for programs."""
    return {
        "url": server.url,
        "proxy": server.proxy,
        "applications": [
            {"url": f"{server.url}{one.path}", **_described(one.settings, context_length(f"{server.url}{one.path}"))}
            for one in server.applications
        ],
    }


def _described(settings: Settings, context: int | None) -> dict[str, Any]:
    from del_core.bundle import load_bundle

    bundle = load_bundle(settings.bundle_path, verify=False)
    return {
        "base_model": bundle.manifest.base_model.name,
        "bundle": settings.bundle,
        "fingerprint": bundle.fingerprint,
        "min_replicas": settings.scaling.min_replicas,
        "max_replicas": settings.scaling.max_replicas,
        "context_length": context,
        "variants": {name: {"epsilon": epsilon, "delta": delta} for name, epsilon, delta in _epsilons(bundle)},
    }


def _epsilons(bundle: Bundle) -> Iterator[tuple[str, float, float]]:
    """Yield each variant's name, exact epsilon a token, and the delta of it."""
    from del_core import accounting

    for name, variant in bundle.variants.items():
        delta = variant.guarantees.delta
        yield name, accounting.epsilon(bundle.mechanism(name), delta), delta


def announce(server: LocalServer, host: str) -> None:
    """Print the URLs, models and variants of a running server."""
    from del_core.bundle import load_bundle
    from del_core.net.addresses import is_loopback

    out = console()
    out.print(server.url, style="bold")
    out.print(f"  {'proxy':12} {PROXY_WORDS[server.proxy]}, listening on {printable(host)}", soft_wrap=True)
    for one in server.applications:
        if one.path:
            out.print(f"{server.url}{printable(one.path)}", style="bold")
        _describe(one.settings, context_length(f"{server.url}{one.path}"))
    if not is_loopback(host):
        open_ones = [one for one in server.applications if not one.settings.keys.given]
        keys = " or keys" if open_ones else ""
        warning = f"Warning: other machines can reach {printable(host)}, without encryption{keys}."
        out.print(warning, style="bold red", soft_wrap=True)
    first = server.applications[0]
    url = server.url + first.path
    place = "" if url.endswith(":8000") and is_loopback(host) else f" --url {url}"
    variant = next(iter(load_bundle(first.settings.bundle_path, verify=False).variants))
    out.print(f'Try: delctl ask "My fellow citizens" --variant {variant}{place}', soft_wrap=True)
    out.print("Stop with Ctrl-C.")


def context_length(url: str) -> int | None:
    """Return the most tokens of one request; None if the application has no replica yet."""
    import httpx

    try:
        answer = httpx.get(f"{url}/readyz", timeout=10.0, trust_env=False).json()
    except (httpx.HTTPError, ValueError):
        return None
    found = answer.get("context_length") if isinstance(answer, dict) else None
    return found if isinstance(found, int) else None


def model_positions(settings: Settings) -> int | None:
    """Return the length of the model's own context, if its configuration says it."""
    config = json.loads((settings.base_model_path / "config.json").read_bytes())
    found = config.get("max_position_embeddings", config.get("n_positions"))
    return found if isinstance(found, int) else None


def _describe(settings: Settings, context: int | None) -> None:
    """Describe a model, its bundle and its replicas."""
    from del_core.audit.quality import stated_warnings
    from del_core.bundle import load_bundle

    bundle = load_bundle(settings.bundle_path, verify=False)
    model, scaling = bundle.manifest.base_model, settings.scaling
    fixed = scaling.min_replicas == scaling.max_replicas
    replicas = (
        str(scaling.min_replicas) if fixed else f"{scaling.min_replicas} to {scaling.max_replicas}, with the load"
    )
    lines = {
        "base model": f"{model.name}, {model.vocabulary_size} tokens, hidden size {model.hidden_size}",
        "bundle": f"{settings.bundle}, fingerprint {bundle.fingerprint[:16]}...",
        "replicas": replicas,
    }
    if context is not None:
        most = model_positions(settings)
        cut = most is not None and context < most and settings.engine.max_model_len is None
        lines["context"] = f"{context} tokens a request" + (
            f"; the model has {most}, the KV cache holds no more (engine.kv_cache_memory_bytes)" if cut else ""
        )
    out = console()
    for name, value in lines.items():
        out.print(f"  {name:12} {printable(value)}", soft_wrap=True)
    for index, (name, epsilon, delta) in enumerate(_epsilons(bundle)):
        out.print(f"  {'' if index else 'variants':12} {name:12} epsilon {epsilon:.2f} a token at delta {delta:g}")
    out.print(f"  {'':12} {'clear':12} no protection: takes public text only")
    for sentence in stated_warnings({variant.name: variant.audit for variant in bundle.manifest.variants}):
        out.print(f"Warning: {printable(sentence)}.", style="bold red", soft_wrap=True)
