#!/bin/sh
# RabbitMQ 4 beside the system's older one, from a Debian 13 in a folder of its own. Root only.
#   rabbitmq4.sh build ROOT             puts Debian 13 with rabbitmq-server into ROOT, unless it is there
#   rabbitmq4.sh run ROOT COMMAND...    runs COMMAND with ROOT's programs, and everything else as it is
set -eu

verb=$1 root=$2
shift 2

if [ "$(id -u)" != 0 ]; then
    echo "RabbitMQ 4 comes from a Debian 13 in $root, which only root can build and mount: run this as root, or" \
        "test on the installed RabbitMQ with make test-broker." >&2
    exit 1
fi

case $verb in
build)
    [ -e "$root/ready" ] && exit 0
    "$(dirname "$0")/system.sh" debootstrap
    # The mirror and proxy that this machine's apt uses; debootstrap's own, when apt names none of Debian's.
    mirror() {
        apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' |
            awk '$1 == "Debian" { print $2; exit }'
    }
    from=$(mirror)
    if [ -z "$from" ]; then
        apt-get update -q >/dev/null
        from=$(mirror)
    fi
    eval "$(apt-config shell http_proxy Acquire::http::Proxy https_proxy Acquire::https::Proxy)"
    export http_proxy="${http_proxy:-}" https_proxy="${https_proxy:-}"
    echo "Building a Debian 13 with RabbitMQ 4 in $root, once ..."
    rm -rf "$root" "$root.part"
    log=$(mktemp)
    # shellcheck disable=SC2086  # no mirror is no argument
    if ! debootstrap --variant=minbase --include=rabbitmq-server trixie "$root.part" $from >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        rm -rf "$root.part" "$log"
        exit 1
    fi
    rm -rf "$log" "$root.part"/var/cache/apt/archives/*.deb
    # The node's name has localhost in it, and a minimal Debian does not know that.
    echo "127.0.0.1 localhost" > "$root.part/etc/hosts"
    touch "$root.part/ready"
    mv "$root.part" "$root"
    ;;
run)
    # In a mount namespace of its own, which ends with its last process: there is nothing to unmount. Only the programs
    # and their settings are Debian 13's. Paths, processes and the network stay as they are outside.
    RABBITMQ_ROOT=$root exec unshare --mount --propagation private sh -euc '
        mount --bind "$RABBITMQ_ROOT/etc" /etc
        mount --bind "$RABBITMQ_ROOT/usr" /usr
        exec "$@"' sh "$@"
    ;;
*)
    echo "rabbitmq4.sh build ROOT | run ROOT COMMAND..." >&2
    exit 2
    ;;
esac
