#!/bin/bash
# Drain this Ray node and wait, for at most $1 seconds, until it has stopped. Serve then starts
# replicas elsewhere, and the requests in flight here finish.
seconds=$1
raylet=
for process in "${PROC:-/proc}"/[0-9]*; do
    node=$(tr '\0' '\n' <"$process/cmdline" 2>/dev/null | sed -n 's/^--node_id=//p')
    if [ -n "$node" ]; then
        raylet=$process
        break
    fi
done
[ -n "$raylet" ] || exit 0
# `ray` must not outlive the time either: the head may be gone.
timeout "$seconds" ray drain-node --address "$RAY_ADDRESS" --node-id "$node" \
    --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "the pod is stopped" \
    --deadline-remaining-seconds "$seconds"
# A zombie has an empty command line.
while grep -qs -- "$node" "$raylet/cmdline" && [ "$SECONDS" -lt "$seconds" ]; do
    sleep 1
done
