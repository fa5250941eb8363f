"""Speaks AMQP. Knows neither Airflow nor Spark; needs pika and the standard library only."""
