#!/usr/bin/env bash
# Builds causal-conv1d and mamba-ssm for this machine's GPU and says which kernels are usable.
#
#   benchmarks/install_cuda.sh [SOURCES] [WHEELS]
#
# SOURCES: a folder with their source archives (*.tar.gz); left out, they are downloaded. WHEELS: where the built
# wheels and logs go (default: ./wheels); what is there already is installed, not built again. SITE: a folder to install
# into instead of the environment of `python3` (then also to be put on PYTHONPATH). PYTHON: another interpreter.
#
# Their own setup.py builds for nine GPU architectures, which takes most of an hour; here for the one that is
# present. Dependencies are not installed: both need torch, ninja, packaging and einops, mamba-ssm also triton and
# transformers. (tilelang and quack-kernels, which its metadata names, serve Mamba-3 alone.) flash-attn takes hours
# to build and is left out: torch's own attention and varlen_attn stand in for it.
set -euo pipefail

python=${PYTHON:-python3}
sources=$(realpath -m "${1:-cuda-sources}")
wheels=$(realpath -m "${2:-wheels}")
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
mkdir -p "$sources" "$wheels"

if [ -z "${CUDA_HOME:-}" ]; then
  # torch would take the folder above nvcc's, which is not the toolkit's where nvcc is a script that calls another.
  touch "$work/empty.cu"
  CUDA_HOME=$(realpath "$(nvcc --dryrun -c "$work/empty.cu" 2>&1 | sed -n 's/^#\$ TOP=//p')")
  export CUDA_HOME
fi
# Headers that the toolkit may lack and NVIDIA's Python packages have.
for include in $("$python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")/nvidia/*/include; do
  if [ -d "$include" ]; then export CPATH="${CPATH:+$CPATH:}$include"; fi
done
echo "CUDA toolkit: $CUDA_HOME; compiler: $(nvcc --version | sed -n 's/.*release //p')"

if ! ls "$sources"/*.tar.gz >/dev/null 2>&1; then
  for package in causal-conv1d==1.7.0 mamba-ssm==2.3.2.post1; do
    "$python" -m pip download --no-deps --no-binary :all: --no-build-isolation -d "$sources" "$package"
  done
fi

build() { # archive, name of the wheel's package
  if ls "$wheels/$2"-*.whl >/dev/null 2>&1; then
    echo "$2: built already"
    return
  fi
  local start=$SECONDS folder="$work/$2"
  mkdir "$folder"
  tar xzf "$1" -C "$folder" --strip-components 1
  "$python" - "$folder/setup.py" <<'PYTHON'
"""One -gencode pair, of this GPU, in place of all that setup.py has."""
import re
import sys
from pathlib import Path

import torch

major, minor = torch.cuda.get_device_capability()
name = f"{major}{minor}"
pair = r'cc_flag\.append\("-gencode"\)\s*\n\s*cc_flag\.append\("arch=compute_\d+,code=sm_\d+"\)'
own = f'cc_flag.extend(["-gencode", "arch=compute_{name},code=sm_{name}"])'
path = Path(sys.argv[1])
text, count = re.subn(pair, "pass", re.sub(pair, own, path.read_text(), count=1))
text = text.replace('"-lineinfo",', "")
assert own in text and count, "setup.py is not as expected: no architectures found"
path.write_text(text)
PYTHON
  (
    cd "$folder"
    export CAUSAL_CONV1D_FORCE_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE NVCC_THREADS=1 MAX_JOBS=$(nproc)
    "$python" -m pip wheel -v --no-deps --no-build-isolation --no-cache-dir -w "$wheels" . >"$wheels/$2.log" 2>&1
  ) || {
    echo "$2: the build failed"
    grep -n -E "error|Error" "$wheels/$2.log" | head -20
    tail -30 "$wheels/$2.log"
    return 1
  }
  echo "$2: built in $((SECONDS - start)) s"
}

install() { # name of the wheel's package
  "$python" -m pip install -q --no-deps --no-index --no-cache-dir --upgrade ${SITE:+--target "$SITE"} "$wheels/$1"-*.whl
}

# Both at the same time, and each installed as soon as it is built: the second may fail or be stopped.
failed=0
pids=()
for archive in "$sources"/*.tar.gz; do
  name=$(basename "$archive")
  (
    build "$archive" "${name%%-*}"
    install "${name%%-*}"
  ) &
  pids+=($!)
done
for pid in "${pids[@]}"; do
  wait "$pid" || failed=1
done

cd "$here"
PYTHONPATH="${SITE:+$SITE:}${PYTHONPATH:-}" "$python" -m archsearch.mixers.kernels
exit $failed
