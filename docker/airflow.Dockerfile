# Airflow with this provider, as `airflow standalone`: to try it, not for production.
FROM debian:12-slim

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/provider
COPY constraints.txt pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY airflow_rabbitmq_spark airflow_rabbitmq_spark
RUN python3 -m venv /opt/airflow \
    && /opt/airflow/bin/pip install --no-cache-dir --constraint constraints.txt .

ENV PATH=/opt/airflow/bin:$PATH AIRFLOW_HOME=/home/airflow
# The user's number is the same in the Spark image: both write to /shared.
RUN useradd --create-home --uid 50000 airflow && mkdir /shared && chown airflow /shared
USER 50000
WORKDIR /home/airflow
EXPOSE 8080
CMD ["airflow", "standalone"]
