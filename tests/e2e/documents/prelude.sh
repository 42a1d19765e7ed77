# Defined before a document's commands: see documents.rs.
set -euo pipefail

block() { at=$1; }
at=0
trap 'echo "failed in block $at: $BASH_COMMAND" >&2' ERR
set -E

# An answer that is an error is a command that failed. Long: the first request to a model with a
# requirements.txt installs it.
curl() { command curl --fail-with-body --max-time 300 "$@"; }

# Starts a server, waits until it is ready, and ends it.
served() {
    "$BINARY" "$@" > served.txt &
    local server=$!
    until grep -q '^listening on' served.txt; do
        kill -0 "$server"
        sleep 0.05
    done
    kill -TERM "$server"
    wait "$server"
}

# The version of support/base that is in the store, for the one that a document makes up.
version() {
    "$BINARY" versions support/base --json | grep -oE '[0-9a-f]{64}' | head -n 1
}

roundhouse() {
    local words=() word
    for word; do
        case "$word" in
        0.0.0.0:8080 | 127.0.0.1:8080) word=127.0.0.1:0 ;;
        12GiB) word=1GiB ;;
        3f2a9c) word=$(version) ;;
        esac
        words+=("$word")
    done
    case "$1" in
    serve | demo)
        [[ " $* " == *" --listen "* ]] || words+=(--listen 127.0.0.1:0)
        served "${words[@]}" --admin-listen 127.0.0.1:0
        ;;
    *) "$BINARY" "${words[@]}" ;;
    esac
}

# The tests are what runs here; everything else that cargo runs is the server.
cargo() {
    case "$*" in
    "run --release -- "*) roundhouse "${@:4}" ;;
    "test --workspace") ;;
    *) return 1 ;;
    esac
}
