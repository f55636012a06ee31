"""Draw the Grafana dashboard without Grafana, from a Prometheus that has the metrics of a run.

Usage: draw_dashboard.py URL SECONDS PICTURE.png [CHROMIUM]

URL is that of the Prometheus, SECONDS how much of the past to show. Panels, queries, units, legends
and positions are those of cluster/monitoring/dashboard.json. uPlot draws the curves, in a page that
Chromium renders. Requires npm, for uPlot, and Chromium.
"""

from __future__ import annotations

import html
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

__all__ = ["draw", "series_of"]

ROOT = Path(__file__).resolve().parent.parent
BOARD = ROOT / "cluster" / "monitoring" / "dashboard.json"
UPLOT = "uplot@1.6.32"
_COLUMN_PX, _ROW_PX, _TITLE_PX = 58, 34, 34
_POINTS = 240
# As the dashboard's variables are when it is opened.
_VARIABLES = {"$application": ".*", "$variant": ".*"}
_SHORTEST_RATE_S = 20.0

_PAGE = """<!doctype html><meta charset="utf-8"><title>{title}</title>
<style>{style}
body {{ margin: 0; background: #f4f5f5; font: 13px "DejaVu Sans", sans-serif; color: #24292e; }}
main {{ position: relative; width: {width}px; height: {height}px; }}
h1 {{ font-size: 17px; margin: 0; padding: 14px 10px 0; height: 30px; }}
section {{ position: absolute; background: #fff; border: 1px solid #dfe1e3; border-radius: 3px; overflow: hidden; }}
h2 {{ font-size: 13px; margin: 6px 10px 0; font-weight: 600; }}
.u-legend {{ font-size: 11px; text-align: left; }} .u-legend .u-value, .u-legend tr:first-child {{ display: none; }}
.u-legend th::after {{ content: "" !important; }}
</style><h1>{title} <small>{when}</small></h1><main id="main"></main>
<script>{script}</script><script>
const panels = {panels};
const colors = ["#5794f2", "#e0752d", "#56a64b", "#b877d9", "#e02f44", "#f2cc0c", "#1f9ea3", "#8f3bb8", "#37872d"];
const units = {{
  s: (v) => v == 0 ? "0 s" : v < 0.001 ? (v * 1e6).toFixed(0) + " µs" : v < 1 ? +(v * 1e3).toPrecision(3) + " ms"
    : +v.toPrecision(3) + " s",
  percentunit: (v) => +(v * 100).toPrecision(3) + " %", reqps: (v) => +v.toPrecision(3) + " req/s",
  Bps: (v) => v < 1000 ? +v.toPrecision(3) + " B/s" : +(v / 1000).toPrecision(3) + " kB/s",
  short: (v) => v < 1000 ? "" + +v.toPrecision(3) : +(v / 1000).toPrecision(3) + " K",
}};
for (const panel of panels) {{
  const box = document.createElement("section");
  for (const [name, of] of [["left", "x"], ["top", "y"], ["width", "w"], ["height", "h"]]) {{
    box.style[name] = panel[of] + "px";
  }}
  const title = document.createElement("h2");
  title.textContent = panel.title;
  box.append(title);
  document.getElementById("main").append(box);
  const most = Math.max(...panel.series.flatMap((one) => one.values).filter((v) => v !== null), 0);
  new uPlot({{
    width: panel.w - 12, height: panel.h - {title_px} - 26 * Math.ceil(panel.series.length / 6), pxAlign: 0,
    series: [{{}}, ...panel.series.map((one, at) => ({{
      label: one.legend, stroke: colors[at % colors.length], width: 1.5, points: {{show: false}}}}))],
    axes: [{{values: (u, all) => all.map((t) => new Date(t * 1000).toISOString().slice(11, 19)), space: 90}},
           {{size: 72, values: (u, all) => all.map(units[panel.unit] ?? units.short)}}],
    scales: {{y: {{range: [0, most > 0 ? most * 1.08 : 1]}}}},
  }}, [panel.times, ...panel.series.map((one) => one.values)], box);
}}
</script>"""


def _ask(url: str, expression: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
    query = urllib.parse.urlencode({"query": expression, "start": start, "end": end, "step": step})
    with urllib.request.urlopen(f"{url}/api/v1/query_range?{query}", timeout=60) as answer:
        found = json.load(answer)
    if found["status"] != "success":
        raise RuntimeError(f"Prometheus refused {expression}: {found}")
    result: list[dict[str, Any]] = found["data"]["result"]
    return result


def _filled(expression: str, seconds: float) -> str:
    """Fill in the variables; rates are over four points of the picture, as Grafana's are."""
    rate_s = max(_SHORTEST_RATE_S, 4 * seconds / _POINTS)
    for name, value in {**_VARIABLES, "$__rate_interval": f"{rate_s:.0f}s"}.items():
        expression = expression.replace(name, value)
    return expression


def _legend(template: str, labels: dict[str, str]) -> str:
    for name, value in labels.items():
        template = template.replace("{{" + name + "}}", value)
    return template


def series_of(panel: dict[str, Any], url: str, start: float, end: float) -> dict[str, Any]:
    """Return what the page draws of a panel: place, title, unit, times, and a series a legend."""
    step = (end - start) / _POINTS
    times = [start + index * step for index in range(_POINTS + 1)]
    series = []
    for target in panel["targets"]:
        for one in _ask(url, _filled(target["expr"], end - start), start, end, step):
            known = {round((float(at) - start) / step): float(value) for at, value in one["values"]}
            # NaN is the quantile of nothing; Grafana leaves a gap there, too.
            values = [None if value is None or value != value else value for value in map(known.get, range(len(times)))]
            if any(value is not None for value in values):
                series.append({"legend": _legend(target["legendFormat"], one["metric"]), "values": values})
    place = panel["gridPos"]
    return {
        "title": panel["title"],
        "unit": panel["fieldConfig"]["defaults"]["unit"],
        "x": place["x"] * _COLUMN_PX + 6,
        "y": place["y"] * _ROW_PX,
        "w": place["w"] * _COLUMN_PX - 8,
        "h": place["h"] * _ROW_PX - 8,
        "times": times,
        "series": series,
    }


def draw(url: str, seconds: float, picture: Path, chromium: str) -> list[str]:
    """Write the picture, and return the titles of panels that have no data."""
    board = json.loads(BOARD.read_text("utf-8"))
    end = time.time()
    panels = [series_of(panel, url, end - seconds, end) for panel in board["panels"]]
    width = max(panel["x"] + panel["w"] for panel in panels) + 6
    height = max(panel["y"] + panel["h"] for panel in panels) + 10
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        subprocess.run(["npm", "pack", "--silent", UPLOT], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
        (archive,) = scratch.glob("*.tgz")
        shutil.unpack_archive(archive, scratch)
        library = scratch / "package" / "dist"
        page = _PAGE.format(
            title=html.escape(board["title"]),
            when=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(end)),
            style=(library / "uPlot.min.css").read_text("utf-8"),
            script=(library / "uPlot.iife.min.js").read_text("utf-8"),
            panels=json.dumps(panels).replace("</", "<\\/"),
            width=width,
            height=height,
            title_px=_TITLE_PX,
        )
        (scratch / "page.html").write_text(page, "utf-8")
        picture.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [
                chromium,
                *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
                *("--disable-component-update", "--disable-sync", "--no-first-run", "--hide-scrollbars"),
                *("--virtual-time-budget=10000", f"--window-size={width},{height + 46}"),
                f"--user-data-dir={scratch}/profile",
                f"--screenshot={picture.resolve()}",
                (scratch / "page.html").as_uri(),
            ],
            check=True,
            capture_output=True,
        )
    return [panel["title"] for panel in panels if not panel["series"]]


def main() -> int:
    """Draw the picture; return 1 if a panel has no data or Chromium is missing."""
    if len(sys.argv) not in (4, 5):
        print(__doc__, file=sys.stderr)
        return 2
    chromium = sys.argv[4] if len(sys.argv) > 4 else shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("draw_dashboard: no Chromium found; name its program as the last argument", file=sys.stderr)
        return 1
    empty = draw(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]), chromium)
    for title in empty:
        print(f"draw_dashboard: the panel {title} has no data", file=sys.stderr)
    return 1 if empty else 0


if __name__ == "__main__":
    sys.exit(main())
