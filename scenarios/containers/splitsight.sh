#!/bin/sh
# A role, with the options that its environment adds:
#   SECURED        where the volume has certificates and tokens
#   OPEN           where it has none
#   ROLE_OPTIONS   always, last
set -euf
role=${1:-}
case $role in
certs)
    if [ -e "${MADE:-/certs}/ca.pem" ]; then
        echo "there are certificates already"
        exit 0
    fi
    ;;
edge | adversary | cloud | page)
    added=${OPEN:-}
    if [ -e /certs/ca.pem ]; then
        added=${SECURED:-}
    fi
    # a folder of a run holds one stream: what an earlier one left is kept beside it
    if [ "$role" = adversary ] && [ -e /results/run ]; then
        mv /results/run "/results/run-$(date -u +%Y%m%d-%H%M%S)"
    fi
    # shellcheck disable=SC2086  # lists of options
    set -- "$@" $added ${ROLE_OPTIONS:-}
    ;;
esac
exec python3 -m scenarios "$@"
