#!/bin/sh
# system.sh [PACKAGE...]: installs the Debian packages that are missing, when root; says which, otherwise.
# RabbitMQ and Java always; further packages by name, where the command of the same name is not there.
set -eu

missing=""
ls /usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server >/dev/null 2>&1 || missing="rabbitmq-server"
java -version 2>&1 | grep -Eq 'version "(1[7-9]|[2-9][0-9])' || missing="$missing openjdk-17-jre-headless"
# Debian's python3 comes without what makes a virtual environment.
"${PYTHON:-python3}" -c 'import ensurepip' 2>/dev/null || missing="$missing python3-venv"
for package; do
    command -v "$package" >/dev/null || missing="$missing $package"
done
missing=$(echo $missing)
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "Install first, as root: apt-get install --no-install-recommends $missing" >&2
    exit 1
fi

# Installing rabbitmq-server would start a node for the whole system; this project only runs nodes of its own.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT INT TERM
fi
export DEBIAN_FRONTEND=noninteractive
echo "Installing $missing ..."
log=$(mktemp)
# shellcheck disable=SC2086  # a list of names
if ! { apt-get update -q && apt-get install -y -q --no-install-recommends $missing; } > "$log" 2>&1; then
    tail -n 20 "$log" >&2
    exit 1
fi
rm -f "$log"
