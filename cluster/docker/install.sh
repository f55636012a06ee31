#!/bin/sh
# Steps of the image build: install.sh LOCK [PIP-OPTION...] installs requirements/LOCK.lock into /opt/del-serve, and
# install.sh project installs this project and writes the bill of materials.
set -eu
what=$1
shift
pip() { /opt/build/bin/python -m pip --python /opt/del-serve/bin/python install --no-deps "$@"; }
if [ "$what" != project ]; then
    pip --require-hashes "$@" --requirement "$what.lock"
    exit
fi
/opt/build/bin/python -m pip install "$(sed -n 's/^\(setuptools==[^ ;]*\).*/\1/p' requirements/cpu.lock)"
/opt/build/bin/python -m pip wheel --no-deps --no-build-isolation --wheel-dir /opt/build/wheels .
pip /opt/build/wheels/*.whl
/opt/del-serve/bin/python cluster/docker/sbom.py > /opt/del-serve/sbom.cdx.json
