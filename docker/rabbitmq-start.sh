#!/bin/bash
# Makes a private authority and a certificate for the host name `rabbitmq`, once; then runs the broker.
set -euo pipefail

folder=${CERTIFICATES:-/certificates}
if [ ! -e "$folder/server.pem" ]; then
    openssl req -x509 -newkey rsa:2048 -nodes -days 365 -subj "/CN=private authority" \
        -keyout "$folder/ca.key" -out "$folder/ca.pem" 2> /dev/null
    openssl req -newkey rsa:2048 -nodes -subj "/CN=rabbitmq" \
        -keyout "$folder/server.key" -out "$folder/server.csr" 2> /dev/null
    openssl x509 -req -in "$folder/server.csr" -CA "$folder/ca.pem" -CAkey "$folder/ca.key" -CAcreateserial -days 365 \
        -extfile <(printf 'subjectAltName=DNS:rabbitmq,DNS:localhost,IP:127.0.0.1') -out "$folder/server.pem" 2> /dev/null
    # The other containers read the authority; the keys are the broker's.
    chmod 644 "$folder/ca.pem" "$folder/server.pem"
    chmod 600 "$folder/ca.key" "$folder/server.key"
    if id rabbitmq > /dev/null 2>&1; then chown rabbitmq "$folder"/server.*; fi
fi
[ -z "${CERTIFICATES_ONLY:-}" ] || exit 0

settings=/etc/rabbitmq/conf.d
mkdir -p "$settings"
umask 077
printf 'default_user = %s\ndefault_pass = %s\n' "${RABBITMQ_USER:?}" "${RABBITMQ_PASSWORD:?}" > "$settings/user.conf"
chown -R rabbitmq "$settings"
exec rabbitmq-server
