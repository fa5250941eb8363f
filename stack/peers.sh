#!/bin/sh
# peers.sh [PYTHON]: environments of the other RabbitMQ providers, for benchmarks that run them beside this one.
# Two, because one needs Airflow 3 and aio-pika 10, and the other Airflow 2 and aio-pika 9.
set -eu

cd "$(dirname "$0")/.."
python=${1:-python3}
build() {
    environment=$1 constraints=$2
    shift 2
    [ "$environment/ready" -nt "$constraints" ] || stack/environment.sh "$python" "$environment" "$constraints" "$@"
}
build .venv-peers constraints-peers.txt \
    apache-airflow apache-airflow-provider-rabbitmq airflow-provider-rabbitmq
build .venv-peers-rmq constraints-peers-rmq.txt \
    apache-airflow airflow-provider-rmq
