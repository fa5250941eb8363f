"""A Spark application: train and cross-validate a classifier on the UCI digits that scikit-learn ships.

It tells how far it is, fold by fold, and returns its accuracy and where the model is. By hand it runs as well and only
logs: ``spark-submit train_digits.py --models /tmp/models``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import col
from sklearn.datasets import load_digits

from airflow_rabbitmq_spark.job import open_job


def digits(spark: SparkSession, folds: int) -> DataFrame:
    """1797 images of 8 by 8 pixels with their digit, each in one of ``folds`` folds."""
    images, labels = load_digits(return_X_y=True)
    rows = [
        (index % folds, float(label), Vectors.dense((image / 16.0).tolist()))
        for index, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    return spark.createDataFrame(rows, ["fold", "label", "features"]).coalesce(2).cache()


def main() -> None:
    """Cross-validate, then train on everything and save the model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", required=True, type=Path, help="directory to save the model in")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=40)
    options = parser.parse_args()

    with open_job() as job:
        spark = SparkSession.builder.getOrCreate()
        spark.sparkContext.setLogLevel("WARN")
        data = digits(spark, options.folds)
        classifier = LogisticRegression(maxIter=options.iterations, regParam=0.001)
        evaluator = MulticlassClassificationEvaluator(metricName="accuracy")
        steps = options.folds + 1
        accuracies: list[float] = []
        for fold in range(options.folds):
            if job.cancelled:
                return
            model = classifier.fit(data.where(col("fold") != fold))
            accuracies.append(evaluator.evaluate(model.transform(data.where(col("fold") == fold))))
            job.progress(
                (fold + 1) / steps,
                f"fold {fold + 1} of {options.folds}",
                accuracy=accuracies[-1],
                mean=sum(accuracies) / len(accuracies),
            )
        path = options.models / f"digits-{spark.sparkContext.applicationId}"
        classifier.fit(data).write().overwrite().save(str(path))
        job.progress(1.0, "model saved")
        job.result({"accuracy": sum(accuracies) / len(accuracies), "folds": accuracies, "model": str(path)})
        spark.stop()


if __name__ == "__main__":
    main()
