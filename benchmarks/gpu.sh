#!/bin/sh
# What one card shows, in under nine minutes: correctness first, then speed.  Results are files in $OUT.
#
#   sh benchmarks/gpu.sh                 on a machine with a CUDA card; OUT=gpu-results by default
#   sh benchmarks/gpu.sh --tiny          the same steps on a CPU, in tiny sizes: does every line run?
#
# Each step has a limit in seconds, and a step that fails or is cut off leaves the others to run.  PYTHON chooses the
# interpreter.  The exit code is 1 if a check of correctness failed.
set -u
cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-python3}
OUT=${OUT:-gpu-results}
TINY=${1:-}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
export PYTHONPATH="$PWD/core:$PWD/plugins:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1
failed=0

step() { # name, limit in seconds, script and its arguments
  name=$1 limit=$2
  shift 2
  [ -n "$TINY" ] && limit=600 # a CPU may be shared
  echo "== $name (at most $limit s)"
  timeout "$limit" "$PYTHON" "benchmarks/$1" "$2" --out "$OUT/$name.json" $TINY >"$OUT/$name.log" 2>&1
  code=$?
  tail -n 12 "$OUT/$name.log"
  echo "$name $code" >>"$OUT/steps.txt"
  return $code
}

: >"$OUT/steps.txt"
step parts 90 gpu_correct.py parts || failed=1
step kernels 50 gpu_correct.py kernels || failed=1
step graphs 45 gpu_correct.py graphs || failed=1
step runs 75 gpu_correct.py runs || failed=1
step step 110 gpu_speed.py step
step attention 60 gpu_speed.py attention
step generation 55 gpu_speed.py generation
step shared 50 gpu_speed.py shared
echo "results in $OUT"
exit $failed
