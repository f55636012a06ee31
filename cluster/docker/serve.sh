#!/bin/bash
# Entry point of the server's images: a Ray cluster of one node that serves $DEL_CONFIG (/etc/del-serve/serve.yaml).
# Arguments, if there are any, are a command that runs instead, such as `delctl keys new`. KubeRay sets its own command.
set -euo pipefail

if (( $# )); then
    exec "$@"
fi
config=${DEL_CONFIG:-/etc/del-serve/serve.yaml}

# A token for this container, readable for its user only.
umask 077
export RAY_AUTH_TOKEN_PATH=/tmp/ray-token
head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$RAY_AUTH_TOKEN_PATH"
token=$RAY_AUTH_TOKEN_PATH
set -a
. /usr/local/lib/del-serve/environment
set +a
export RAY_AUTH_TOKEN_PATH=$token
export RAY_SERVE_HAPROXY_MAXCONN=${DEL_MAX_CONNECTIONS:-$RAY_SERVE_HAPROXY_MAXCONN}

stop() {
    trap - TERM INT
    # Requests in flight are finished first.
    serve shutdown --yes --address http://127.0.0.1:8265 > /dev/null || true
    kill "$ray" 2> /dev/null || true
    wait "$ray" || true
    exit 0
}

ray start --head --block --dashboard-host=127.0.0.1 --metrics-export-port=8080 ${DEL_CPUS:+--num-cpus="$DEL_CPUS"} &
ray=$!
trap stop TERM INT
until delctl status --address http://127.0.0.1:8265 > /dev/null 2>&1; do
    kill -0 "$ray"
    sleep 1
done
delctl deploy "$config" --address http://127.0.0.1:8265 &
wait $! # as a job, so that a signal is handled meanwhile
wait "$ray"
