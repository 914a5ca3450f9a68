#!/usr/bin/env bash
# Build Horovod 0.28.1 for the torch of a Python, with gloo alone: build_horovod.sh PYTHON. Ten minutes on one core.
# Its C++ is of 2014, torch's of 2017 and later: what is built is told to be of 2020.
set -euo pipefail
python="$1"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"$python" -m pip install --quiet --disable-pip-version-check "setuptools<81" "cmake<4" wheel cloudpickle
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: --no-build-isolation \
    --dest "$folder" horovod==0.28.1
tar -xzf "$folder"/horovod-0.28.1.tar.gz -C "$folder"
sed -i 's/CMAKE_CXX_STANDARD 14/CMAKE_CXX_STANDARD 20/' "$folder"/horovod-0.28.1/{,horovod/torch/}CMakeLists.txt
export HOROVOD_WITH_PYTORCH=1 HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_MPI=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1
PATH="$(dirname "$("$python" -c 'import sys; print(sys.executable)')"):$PATH" \
    "$python" -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps "$folder/horovod-0.28.1"
"$python" -c 'import horovod.torch as hvd; assert hvd.gloo_built()'
