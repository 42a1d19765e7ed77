#!/usr/bin/env bash
# Replays the traces and writes the results.
#
#   loadtest/simulate/run.sh ROUNDHOUSE TRACES OUT
#
# ROUNDHOUSE is the binary, TRACES the folder with alibaba_gentd26_lora_requests.csv, OUT the folder for
# README.md, the pictures and the JSON. What is printed does not depend on the machine.
set -euo pipefail
roundhouse=$(realpath "$1")
alibaba=$(realpath "$2")/alibaba_gentd26_lora_requests.csv
here=$(realpath "$(dirname "$0")")
mkdir -p "$3"
out=$(realpath "$3")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 "$here/traces.py" "$work" "$alibaba"
ln -s "$alibaba" "$work/alibaba.csv"
cd "$work"

say() { printf '%s\n' "$@" >> "$out/README.md"; }

# show NAME ARGUMENTS...: runs the command as a person sees it, and once more for the JSON.
show() {
    local name=$1
    shift
    # Quotes are not needed by any argument here.
    say '```text' "\$ roundhouse simulate $*"
    "$roundhouse" simulate "$@" >> "$out/README.md"
    say '```' ''
    "$roundhouse" simulate "$@" --json > "$out/$name.json"
}

all="--policy lru --policy greedy-dual --collation off --collation on"
slots="--slots 3 --slots 5 --slots 10 --slots 20"
cat "$here/head.md" > "$out/README.md"

say '## The Alibaba trace, saturated' '' \
    '16 requests are unanswered at any time, requests take no time and all files are on disk: loads are all' \
    'that is waited for. `alibaba.csv` is `alibaba_gentd26_lora_requests.csv`.' '' \
    'One load at a time:' ''
# shellcheck disable=SC2086
show alibaba-one-load --trace alibaba.csv --sizes 1GiB $slots $all --pending 16 --service-time 0ms \
    --warm-disk --concurrent-loads 1 --picture "$out/alibaba.svg"
say '![hit ratio over budget](alibaba.svg)' '' 'The default, two at a time:' ''
# shellcheck disable=SC2086
show alibaba-two-loads --trace alibaba.csv --sizes 1GiB $slots $all --pending 16 --service-time 0ms --warm-disk

say '## The Alibaba trace at its own times' '' \
    '20 times faster, 0.3 requests a second: unsaturated. Then 1,000 times faster, where loads are the' \
    'bottleneck at few slots.' ''
# shellcheck disable=SC2086
show alibaba-open --trace alibaba.csv --sizes 1GiB $slots --collation off --collation on --compress 20 \
    --target-hit-ratio 0.9
show alibaba-busy --trace alibaba.csv --sizes 1GiB --slots 5 --slots 10 --collation off --collation on \
    --compress 1000

say '## Mixed sizes' '' \
    '2.1, 4.3, 6.9 and 12.9 GB by model, 56 GB: saturated, then one request after the other, which is what' \
    'the plain models of caching do.' ''
# shellcheck disable=SC2086
show mixed-saturated --trace alibaba.csv --sizes sizes --budget 56GB $all --pending 16 --service-time 0ms \
    --warm-disk --concurrent-loads 1
# shellcheck disable=SC2086
show mixed-one --trace alibaba.csv --sizes sizes --budget 56GB --policy lru --policy greedy-dual --pending 1 \
    --service-time 0ms --warm-disk

say '## A nightly scan over everything' '' \
    '400 models, 40 of them by day; `traces.py` says how it is made. One request after the other, saturated,' \
    'and at its own times 10 times faster.' ''
# shellcheck disable=SC2086
show scan-one --trace scan.csv --sizes 1GiB --slots 10 --slots 20 --slots 40 --slots 80 --policy lru \
    --policy greedy-dual --pending 1 --service-time 0ms --warm-disk --picture "$out/scan.svg"
say '![hit ratio over budget](scan.svg)' ''
# shellcheck disable=SC2086
show scan-saturated --trace scan.csv --sizes 1GiB --slots 20 --slots 40 $all --pending 16 --service-time 0ms \
    --warm-disk
# shellcheck disable=SC2086
show scan-open --trace scan.csv --sizes 1GiB --slots 20 --slots 40 $all --compress 10

say '## A long tail' '' '2,000 models; the first 200 get half of the requests. One request after the other, and saturated.' ''
# shellcheck disable=SC2086
show tail-one --trace tail.csv --sizes 1GiB --slots 50 --slots 100 --slots 200 --slots 400 --policy lru \
    --policy greedy-dual --pending 1 --service-time 0ms --warm-disk --picture "$out/tail.svg"
say '![hit ratio over budget](tail.svg)' ''
# shellcheck disable=SC2086
show tail-saturated --trace tail.csv --sizes 1GiB --slots 100 --slots 200 $all --pending 16 --service-time 0ms \
    --warm-disk
