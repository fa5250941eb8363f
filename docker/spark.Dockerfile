# Spark standalone, master or worker, with scikit-learn for the example. The driver's side of this package comes with each
# job, as a bundle.
FROM debian:12-slim

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends openjdk-17-jre-headless procps python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

COPY constraints-spark.txt /tmp/constraints.txt
RUN python3 -m venv /opt/spark \
    && /opt/spark/bin/pip install --no-cache-dir --constraint /tmp/constraints.txt pyspark scikit-learn

ENV PATH=/opt/spark/bin:$PATH PYSPARK_PYTHON=/opt/spark/bin/python
RUN useradd --create-home --uid 50000 spark && mkdir /shared && chown spark /shared
USER 50000
WORKDIR /home/spark
