"""The comparison's kinds in other processes: refused without the plugin, decoded with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import posterior_decoders
from benchmarks.posterior_decoders import COMPARED
from benchmarks.support.plugins import installed
from tests.support.decoders import draw_codes, make_bundle

ROOT = Path(__file__).resolve().parents[3]
_PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from del_core.bundle import BundleError, load_bundle, load_client
for path in sorted(Path(sys.argv[1]).iterdir()):
    if path.is_dir():
        assert load_client(path / "client").variants["noisy"].decoder == path.name
        try:
            decoder = load_bundle(path).build_decoder("noisy")
        except BundleError as error:
            print(error.file, error.reason)
        else:
            np.save(Path(sys.argv[1]) / path.name, decoder.decode(np.load(sys.argv[2])))
"""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle of each kind, named after it."""
    folder = tmp_path_factory.mktemp("bundles")
    for kind in COMPARED:
        make_bundle(folder / kind, kind)
    return folder


def _run(bundles: Path, codes: Path, **environment: str) -> list[str]:
    command = [sys.executable, "-c", _PROGRAM, str(bundles), str(codes)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, env=variables, cwd=codes.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_without_the_plugin_a_server_names_the_kind_and_says_what_can_be_done(bundles: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "codes.npy", draw_codes(7))
    assert _run(bundles, tmp_path / "codes.npy") == [
        f"manifest.json decoder of variant noisy must be one of linear, lookup, got '{kind}'; "
        "an installed plugin can register others (entry point group del_serve.plugins)"
        for kind in sorted(COMPARED)
    ]


def test_with_the_plugin_every_process_decodes_them(bundles: Path, tmp_path: Path) -> None:
    codes = draw_codes(7)
    np.save(tmp_path / "codes.npy", codes)
    before = os.environ.get("PYTHONPATH")
    with installed(posterior_decoders.__name__):
        assert _run(bundles, tmp_path / "codes.npy", PYTHONPATH=os.environ["PYTHONPATH"]) == []
    assert os.environ.get("PYTHONPATH") == before
    for kind in COMPARED:
        _, bundle = make_bundle(tmp_path / kind, kind)
        expected = bundle.build_decoder("noisy").decode(codes)
        np.testing.assert_allclose(np.load(bundles / f"{kind}.npy"), expected, rtol=1e-5, atol=1e-5)
