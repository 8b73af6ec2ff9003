#!/bin/bash
# All that a GPU can show in nine minutes, in one call, on a machine with torch, torchvision, pyarrow,
# numpy, scikit-learn and pytest, without ray, pydantic and a network. First, where those are:
#
#     tests/gpu_day.sh --prepare [DAY ...]    # Fashion-MNIST's files and the plan, into data/gpu-day
#
# What earlier DAYs (the folders that this script wrote) have trained is not trained again, and is in
# the next day's folder too. git ignores data/: take it along with the checkout. Then, there:
#
#     OUT=FOLDER tests/gpu_day.sh
#
# It runs (a) the tests marked gpu, (b) the comparison of bits, (c) the benchmark, and for what is
# left of the time (d) grids/fashion-gpu.yaml. A part that fails is reported, and the next one goes on;
# then it exits with 1. Below $OUT it writes one folder of at most 8 files: a results folder, which
# git can keep and `python -m harness.upkeep merge` joins with those of other days; all that was
# said is in its logs/. `--tiny` does the same on a CPU, in small.
set -u
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-$(command -v python || command -v python3)}
kit=$PWD/data/gpu-day
seconds=530

prepare() {
    local here=${BN_ORDER_DATA:-$HOME/.cache/bn-order} raw=FashionMNIST/raw file from
    mkdir -p "$kit/$raw" || return 2
    for file in {train,t10k}-{images-idx3,labels-idx1}-ubyte.gz; do
        for from in "$here/$raw" /usr/share/datasets/fashion-mnist; do
            [ -f "$kit/$raw/$file" ] || [ ! -f "$from/$file" ] || cp "$from/$file" "$kit/$raw/"
        done
    done
    BN_ORDER_DATA=$kit "$python" -m harness.datasets fashion-mnist || return 2  # fetches what is missing
    rm -rf "$kit/plan" "$kit/bare"
    "$python" -m harness.run grids/fashion-gpu.yaml --plan-only --results "$kit/bare" || return 2
    "$python" -m harness.upkeep merge "$kit/bare" "$@" -o "$kit/plan" || return 2
    rm -r "$kit/bare"
    du -sh "$kit"/FashionMNIST "$kit/plan"
    echo "take along: data/gpu-day/FashionMNIST and data/gpu-day/plan"
}

part() {  # name, seconds, command
    local name=$1 limit=$2 begun=$SECONDS code
    shift 2
    echo "=== $name"
    timeout --kill-after=5 $((limit * patience)) "$@"
    code=$?
    ((code == 124 || code == 137)) && name+=" (no end in time)"
    summary+=("$( ((code)) && echo "FAILED $code" || echo ok ): $name, $((SECONDS - begun)) s")
    ((code)) && failed=1
    return $code
}

bits_and_speed() {
    local tests
    mapfile -t tests < <(grep -rl --include='test_*.py' 'pytest\.mark\.gpu' tests)
    # Other versions of pytest and other warnings than here are no matter of these tests.
    part "(a) tests marked gpu" 110 "$python" -m pytest -q -m gpu -o minversion=7 -W default \
        -p no:cacheprovider "${collect[@]}" "${tests[@]}"
    part "(b) bits" 80 "$python" -m tests.benchmarks.bits
    part "(c) speed" $((60 * ${speed%.*} + 45)) "$python" -m tests.benchmarks.gpu --minutes "$speed" \
        --json "$target/logs/speed.json"
}

study() {
    local plan=$kit/plan left
    if ((tiny)); then
        plan=$scratch/plan
        part "(d) plan" 60 "$python" -m harness.run grids/fashion-gpu.yaml dataset=digits epochs=1 \
            width_factor=0.125 pack_size=2 augmentation=none analysis.looks=[2] --seeds 2 \
            --plan-only --results "$plan"
    else
        export BN_ORDER_DATA=$kit
    fi
    if [ ! -f "$plan/plan.parquet" ]; then
        failed=1
        summary+=("FAILED: (d) study: no plan at $plan; where pydantic is: tests/gpu_day.sh --prepare")
        return
    fi
    cp -r "$plan" "$scratch/rows" || return
    left=$((seconds - 45 - SECONDS))
    ((left < 10)) && left=10
    part "(d) study" $((left + 10)) "$python" -m harness.work "$scratch/rows" -v --accept-other-code \
        --minutes "$("$python" -c "print($left / 60)")"
    if [ -d "$scratch/rows/failures" ]; then  # the log has them; many small files are not for git
        timeout 20 "$python" -m harness.status "$scratch/rows"
        rm -r "$scratch/rows/failures"
    fi
    part "(d) merge" 25 "$python" -m harness.upkeep merge "$scratch/rows" -o "$target"
}

main() {
    timeout 20 "$python" -m torch.utils.collect_env 2> /dev/null | grep -iE '^(python|pytorch) version|gpu|driver|cudnn'
    if ! ((tiny)) && ! "$python" -c 'import torch; raise SystemExit(not torch.cuda.is_available())'; then
        echo "gpu_day.sh: torch finds no CUDA device here; --tiny runs on a CPU" >&2
        return 2
    fi
    bits_and_speed
    study
    local files
    files=$(find "$target" -type f | wc -l)
    echo "=== $SECONDS s; $files files in $target"
    printf '%s\n' "${summary[@]}"
    if ((files > 8)); then
        echo "FAILED: more than 8 files, of which a device machine may not give all back"
        failed=1
    fi
    return $failed
}

tiny=0 patience=1 failed=0 summary=() collect=() speed=2.5
case ${1-} in
    --prepare) shift; prepare "$@"; exit ;;
    --tiny) tiny=1 patience=10 collect=(--collect-only) speed=0.1 seconds=900 ;;
    '') ;;
    *) echo "gpu_day.sh: ${1}: --prepare, --tiny or nothing" >&2; exit 2 ;;
esac
export PYTHONUNBUFFERED=1  # what was said before a part was ended is in its log
target=${OUT:-results}/gpu-day-$(date -u +%Y%m%dT%H%M%S)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$target/logs" || exit 2
main 2>&1 | tee "$target/logs/gpu-day.txt"
exit "${PIPESTATUS[0]}"
