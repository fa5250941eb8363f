#!/bin/sh
# Checks docker/ as far as it goes without an engine.
set -eu
cd "$(dirname "$0")/.."
.venv/bin/hadolint docker/*.Dockerfile
.venv/bin/python -m stack.compose docker/compose.yaml
