#!/usr/bin/env bash
# Everything that waits for a GPU, in one call of less than 8 minutes on a machine that may be without a network:
# builds the extension with CUDA beside the clone, reads the machine code, runs the tests and benchmarks of the GPU.
#
#   benchmarks/gpu/gpu_check.sh [--dry-run]
#
# PYTHON  a Python with torch, triton and what pyproject.toml lists under dependencies and dev (default: python3)
# WHEELS  a folder of wheels for what that Python lacks; installed for this call only, never from a network
# OUT     where the JSON files go (default: benchmarks/results/performance/gpu, which write_performance.py reads): one
#         of the benchmarks, DATE_GPU_COMMIT.json, and one of the machine and the steps, DATE_GPU_COMMIT.machine.json
#
# Ends with 0 if every step passed, with 1 if one failed, with 2 if there is no GPU. Without a GPU it goes as far as it
# can; --dry-run says that this is what was wanted, and then that alone is no failure.
set -euo pipefail
cd "$(dirname "$0")/../.."

dry_run=no
case "${1-}" in
  "") ;;
  --dry-run) dry_run=yes ;;
  *) echo "usage: $0 [--dry-run]" >&2; exit 64 ;;
esac

python=${PYTHON:-python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
out=${OUT:-benchmarks/results/performance/gpu}
gpu=yes
nvidia-smi -L >/dev/null 2>&1 || gpu=no
if [ "$gpu" = no ]; then
  echo "There is no GPU here (nvidia-smi finds none): tests and benchmarks of the GPU are left out."
  out=$scratch/out
fi
mkdir -p "$out"
chip=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1 | tr '[:upper:] _' '[:lower:]--') || chip=
name=$(date +%F)_${chip:-none}_$(git rev-parse --short=7 HEAD 2>/dev/null || echo unknown)

if [ -n "${WHEELS-}" ]; then
  "$python" -m pip install --quiet --no-index --find-links "$WHEELS" --target "$scratch/site" "$WHEELS"/*.whl
fi
export PYTHONPATH="$scratch/build/lib:$scratch/site"

missing=$("$python" -P - <<'PYTHON'
import importlib.metadata, re, tomllib


def is_missing(name):
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return True


with open("pyproject.toml", "rb") as file:
    needed = [re.match(r"[\w.-]+", one)[0] for one in tomllib.load(file)["project"]["dependencies"]]
needed += "triton setuptools pybind11 pytest pytest-benchmark hypothesis".split()
print(*filter(is_missing, needed))
PYTHON
)
if [ -n "$missing" ]; then
  echo "$python lacks: $missing. Put their wheels into a folder and name it in WHEELS." >&2
  exit 1
fi

failed=()
steps=()
# step NAME SECONDS COMMAND...: runs it for at most so long; a failure is remembered and the rest goes on.
step() {
  local name=$1 limit=$2 start=$SECONDS result=passed
  shift 2
  echo "== $name"
  if ! timeout "$limit" "$@"; then
    result=failed
    failed+=("$name")
  fi
  steps+=("$name=$result=$((SECONDS - start))")
}

# Into a folder of its own: neither the clone's build nor an installed one is touched. -P: nor imported from the clone.
step build 110 env MODELSWARMS_CUDA=1 "$python" setup.py --quiet egg_info --egg-base "$scratch" \
  build --build-base "$scratch/build" --build-lib "$scratch/build/lib"
step "machine code" 30 "$python" -P benchmarks/gpu/static_gpu.py --json "$scratch/static.json"
if [ "$gpu" = yes ]; then
  step "tests of cuda" 70 "$python" -P -m pytest tests -m gpu -k "not triton"
  step "tests of triton" 120 "$python" -P -m pytest tests -m gpu -k triton
  step benchmarks 140 "$python" -P -m pytest --import-mode=append \
    benchmarks/operators/bench_{update,mix,rows,variants,stream}.py \
    -k "gpu or cuda or triton" --benchmark-json="$out/$name.json" --benchmark-quiet
else
  step "tests found" 60 "$python" -P -m pytest tests -m gpu --collect-only -qq
  step "benchmarks found" 60 "$python" -P -m pytest --import-mode=append \
    benchmarks/operators/bench_{update,mix,rows,variants,stream}.py --collect-only -qq
fi

"$python" -P - "$out/$name.machine.json" "$scratch/static.json" "${steps[@]}" <<'PYTHON'
import json, pathlib, platform, subprocess, sys

import torch, triton


def said(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


fields = "name,driver_version,memory.total,clocks.max.sm,clocks.max.memory,pcie.link.gen.max,pcie.link.width.max"
values = said("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")
static = pathlib.Path(sys.argv[2])
facts = {
    "gpus": [dict(zip(fields.split(","), line.split(", "))) for line in (values or "").splitlines()],
    "nvcc": (said("nvcc", "--version") or "").splitlines()[-1:],
    "python": platform.python_version(),
    "torch": torch.__version__,
    "cuda of torch": torch.version.cuda,
    "triton": triton.__version__,
    "commit": said("git", "rev-parse", "HEAD"),
    "changes": bool(said("git", "status", "--porcelain")),
    "steps": [dict(zip(("step", "result", "seconds"), step.split("="))) for step in sys.argv[3:]],
    "machine code": json.loads(static.read_text()) if static.exists() else None,
}
pathlib.Path(sys.argv[1]).write_text(json.dumps(facts, indent=1) + "\n")
print("\n".join(f"{step['step']}: {step['result']}, {step['seconds']} s" for step in facts["steps"]))
PYTHON

if [ ${#failed[@]} -gt 0 ]; then
  exit 1
fi
if [ "$gpu" = yes ]; then
  echo "Written to $out; now: $python -m benchmarks.reporting.write_performance"
elif [ "$dry_run" = no ]; then
  exit 2
fi
