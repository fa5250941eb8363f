"""A RabbitMQ node, a Spark cluster and an Airflow of one's own: real ones, on loopback and free ports.

The demo, the tests and the benchmarks start them privately, in seconds, and leave nothing behind.
"""
