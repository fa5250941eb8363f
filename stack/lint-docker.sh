#!/bin/sh
# Checks docker/ as far as it goes without an engine: the Dockerfiles by hadolint, the compose file by docker-compose.
set -eu
cd "$(dirname "$0")/.."
.venv/bin/hadolint docker/*.Dockerfile
RABBITMQ_PASSWORD=example docker-compose -f docker/compose.yaml config --quiet
