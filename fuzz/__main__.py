"""Fuzz what reads messages that anybody may have sent, guided by coverage (https://github.com/google/atheris).

    .venv/bin/uv pip install --group fuzz
    .venv/bin/python -m fuzz                # 300,000 inputs; any argument of libFuzzer's replaces that
    .venv/bin/python -m fuzz -runs=1000000 -max_len=8192

The first byte of an input chooses what reads the rest: the codec of events, a user's message, or a header frame. It ends
with the input that broke something, or with a tally.
"""

from __future__ import annotations

import sys
from collections import Counter

import atheris

with atheris.instrument_imports(include=["airflow_rabbitmq_spark", "pika", "json"]):
    import pika

    from fuzz import oracle, seeds

TALLY: Counter[str] = Counter()
#: Inputs between two tallies: libFuzzer ends the process without a word to Python.
EVERY = 20_000


def one_input(data: bytes) -> None:
    """One of libFuzzer's inputs."""
    which, rest = (data[0] if data else 0) % 3, data[1:]
    if which == 0:
        event = oracle.check_event(rest)
        TALLY["events, " + ("refused" if event is None else event.kind.value)] += 1
    elif which == 1:
        kind = ("application/json", "text/plain", None)[len(rest) % 3]
        content = oracle.check_message(rest, pika.BasicProperties(content_type=kind), routing_key=rest[:20])
        TALLY["messages, " + content["body_encoding"]] += 1
    else:
        oracle.check_frame(seeds.header_frame(rest))
        TALLY["header frames"] += 1
    if sum(TALLY.values()) % EVERY == 0:
        report()


def report() -> None:
    """Say how many inputs of what kind there were."""
    print("\n" + "\n".join(f"{count:9,} {name}" for name, count in sorted(TALLY.items())))
    print(f"{sum(TALLY.values()):9,} in all")


def main() -> None:
    arguments = sys.argv[1:] or ["-runs=300000", "-max_len=4096", "-print_final_stats=1"]
    folder = seeds.write()
    atheris.Setup([sys.argv[0], *arguments, str(folder)], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
