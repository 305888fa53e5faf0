#!/usr/bin/env bash
# Everything that only a GPU can say, in at most ten minutes, on a machine with CUDA, PyTorch and GPyTorch; nothing is
# downloaded. From the repository's root:
#
#     bash tests/device_check.sh [folder]      # results go there, default device_check; run again to resume
#     DEVICE=cpu bash tests/device_check.sh    # a rehearsal without a GPU
#
# Files: facts.json (the machine), tests.txt and cores.txt (what pytest says), launches.json (launches, transfers and
# seconds of warm steps), bench.json (seconds, floors, memory and audited errors; `gp-rangeformer bench` reads it),
# done/ (which parts are finished, with their exit codes). A part that fails does not stop the others; the exit code
# counts those that did.
set -u
out=${1:-device_check} device=${DEVICE:-cuda} started=$SECONDS total=${SECONDS_ALLOWED:-580}
python=${PYTHON:-python3} failed=0
mkdir -p "$out/done"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" GP_RANGEFORMER_DATA=${GP_RANGEFORMER_DATA:-$PWD/shared/data}

# part NAME SECONDS FILE COMMAND...: once, within its own limit and what is left of the whole.
part() {
  local name=$1 limit=$2 file=$3
  shift 3
  if [ -e "$out/done/$name" ]; then
    echo "$name: done before"
    return
  fi
  local left=$((total - SECONDS + started))
  if [ "$left" -lt 15 ]; then
    echo "$name: no time left, run again"
    failed=$((failed + 1))
    return
  fi
  local begun=$SECONDS code=0
  timeout "$((left < limit ? left : limit))" "$@" >"$out/$file" 2>&1 || code=$?
  echo "$name: exit $code after $((SECONDS - begun)) s"
  if [ "$code" -eq 0 ]; then echo "$code" >"$out/done/$name"; else
    failed=$((failed + 1))
    tail -n 5 "$out/$file"
  fi
}

if ! "$python" -c "import torch, gpytorch, jaxtyping, scipy; assert '$device' == 'cpu' or torch.cuda.is_available()"; then
  echo "needs $python with PyTorch for CUDA, GPyTorch, jaxtyping and SciPy (PYTHON names another), and a GPU" >&2
  exit 100
fi
sizes=2000,4000,8000,16000 cuda=cuda
[ "$device" = cpu ] && sizes=1000 && cuda="not big and not cuda"

part facts 60 facts.txt "$python" -m tests.device_launches "$out/facts.json" "$device"
part cores 120 cores.txt "$python" -m pytest -q -n 0 -p no:cacheprovider tests/system/test_device_cores.py tests/kernels/test_operations.py tests/kernels/test_wide_inputs.py
part tests 150 tests.txt "$python" -m pytest -q -n 0 -p no:cacheprovider -m "$cuda" tests/kernels/test_cuda.py tests/plugin/test_cuda.py tests/system
part launches 120 launches.txt "$python" -m tests.device_launches "$out/launches.json" "$device" "$sizes"
part bench 400 bench.txt "$python" -c "from gp_rangeformer.lab.cli import app; app()" bench --dataset borehole --device "$device" --sizes "$sizes" \
  --solvers cholesky,exact,rangeformer --json "$out/bench.json"
exit "$failed"
