#!/bin/sh
# Shape what the edge sends: netem on the interface of the network namespace that this container shares with it.
#   RATE 5mbit, DELAY 40ms, JITTER 10ms, LOSS 0.1%
set -eu
link=$(ip -o route show default | awk '{ for (i = 1; i < NF; i++) if ($i == "dev") { print $(i + 1); exit } }')
if ! tc qdisc replace dev "$link" root netem rate "$RATE" delay "$DELAY" "$JITTER" loss "$LOSS"; then
    echo "this kernel has no netem (sch_netem) or NET_ADMIN is not granted: leave the profile out, and emulate the" \
        "network in the edge with EDGE_OPTIONS=\"--network lte\"" >&2
    exit 1
fi
echo "$link: rate $RATE, delay $DELAY ± $JITTER, loss $LOSS on what the edge sends"
trap 'tc qdisc del dev "$link" root; exit 0' TERM INT
while :; do
    sleep 3600 &
    wait $!
done
