#!/bin/sh
# Load, first answer and unload of the demo's scikit-learn handler, started and forked by turns.
#
#     loadtest/warm/run.sh OUT.csv [ROUNDS] [PYTHON]
#
# As root. The first round installs scikit-learn from the package index that pip is set to.
set -eu
cd "$(dirname "$0")/../.."
body='contract,months,bill,calls
monthly,3,79.0,4
'
cargo bench -p roundhouse-workers --bench warm -- \
    src/server/demo/models/forecast/churn "$body" "${2:-15}" "${3:-python3}" | tee "$1"
