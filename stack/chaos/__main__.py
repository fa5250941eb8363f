"""``make chaos``: break one thing at a time, at a random moment, and see whether the task still ends as it should.

    .venv/bin/python -m stack.chaos --seed 7 --rounds 40
    .venv/bin/python -m stack.chaos --seed 7 --replay 12

Everything is real: Airflow with two triggerers, a TLS broker, a Spark cluster, and proxies between them. A round starts
a job of some seconds, injects one fault, and waits for the end. Then state and result must be right, the application
must have run to its end once, and no queue, process, connection or thread may be left. The faults come in an order that
the seed shuffles; round N of a seed always draws the same fault, moments and durations. (What the machine makes of them
is up to the machine.) docs/chaos.md says more.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from stack.chaos.faults import FAULTS, OWN
from stack.chaos.parts import ROOT, Stack, threads
from stack.chaos.round import MORE_THREADS, Missed, Round, left_behind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

#: Where the logs of rounds that failed are kept.
KEPT = ROOT / ".stack" / "chaos"


def draw(seed: int, number: int) -> tuple[str, random.Random]:
    """The fault of a round, and its source of randomness. Every fault comes once before any comes again."""
    lap, place = divmod(number - 1, len(FAULTS))
    names = list(FAULTS)
    random.Random(f"{seed} {lap}").shuffle(names)  # noqa: S311 - chance to repeat, no secret
    return names[place], random.Random(f"{seed} {number}")  # noqa: S311


def _play(played: Round, name: str) -> tuple[str, list[str]]:
    try:
        FAULTS[name](played)
        problems = played.problems()
    except Missed as missed:
        return "missed", [str(missed), *(played.problems() if played.run_id else [])]
    except Exception:  # noqa: BLE001 - a round that breaks is a failure to look at, and the next one is played
        return "FAILED", [traceback.format_exc()]
    return ("FAILED" if problems else "ok"), problems


class Chaos:
    """Rounds on one stack; after a failure on a new one, so that a failure has no consequences.

    :param results: a file to which each round adds a line of JSON.
    """

    def __init__(self, seed: int, away: float, results: Path | None) -> None:
        self._seed, self._away, self._results = seed, away, results
        self._closing = ExitStack()
        self._stack: Stack | None = None
        self._most_threads: int | None = None
        self.tally: Counter[str] = Counter()
        self.failed: list[str] = []

    def close(self) -> None:
        """Stop everything."""
        self._closing.close()
        self._stack = None
        self._most_threads = None

    def _parts(self) -> Stack:
        if self._stack is None:
            folder = Path(self._closing.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
            print("  starting the stack", flush=True)
            self._stack = Stack(folder, self._closing)
        return self._stack

    def play(self, numbers: list[int]) -> None:
        """Play rounds at the same time, and say what came of them."""
        stack = self._parts()
        rounds, names = [], []
        for number in numbers:
            name, chance = draw(self._seed, number)
            print(f"{number:4}  {name}", flush=True)
            names.append(name)
            rounds.append(Round(stack, number, chance, away=self._away))
        with ThreadPoolExecutor(len(numbers)) as pool:
            ends = list(pool.map(_play, rounds, names))
        stack.heal()
        try:
            left = left_behind(stack, rounds, self._most_threads)
        except Exception:  # noqa: BLE001 - likewise
            left = [traceback.format_exc()]
        if self._most_threads is None:
            self._most_threads = sum(threads(triggerer) for triggerer in stack.triggerers) + MORE_THREADS
        known = any(outcome == "FAILED" for outcome, _ in ends)
        for played, name, (outcome, problems) in zip(rounds, names, ends, strict=True):
            # What a round that failed has left is not another's fault; without one it is anybody's.
            guilty = bool(left) and (outcome == "FAILED" or not known)
            self._note(played, name, "FAILED" if guilty else outcome, problems + left * guilty)
        if left or any(problems for _, problems in ends):
            for played in rounds:
                played.clean()
            self.close()

    def _note(self, played: Round, name: str, outcome: str, problems: list[str]) -> None:
        self.tally[outcome] += 1
        took = time.monotonic() - played.began
        counts = f"{len(played.noted('begin'))} begun, {len(played.noted('end'))} ended"
        print(f"{played.number:4}  {outcome} in {took:.0f} s: {counts}", flush=True)
        if outcome != "ok":
            self._keep(played)
            print("".join(f"        {line}\n" for line in [*played.told, *problems]), end="", flush=True)
        if outcome == "FAILED":
            self.failed.append(f"--seed {self._seed} --replay {played.number}  ({name})")
        if self._results is not None:
            with self._results.open("a") as file:
                line = {
                    "fault": name,
                    "outcome": outcome,
                    "seed": self._seed,
                    "round": played.number,
                    "broker": played.stack.broker_version,
                    "seconds": round(took, 1),
                    "ends": len(played.noted("end")),
                    "problems": problems,
                }
                file.write(json.dumps(line) + "\n")

    def _keep(self, played: Round) -> None:
        """Copy what explains a failure out of the folder that goes away."""
        target = KEPT / f"seed-{self._seed}-round-{played.number}"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        (target / "round.txt").write_text("\n".join(played.told) + "\n" + played.notes.read_text())
        stack = played.stack
        for source in (*stack.airflow.directory.glob("*.log"), stack.broker.directory / "broker.log"):
            shutil.copy(source, target)
        if played.log_folder.is_dir():
            shutil.copytree(played.log_folder, target / "task")
        (target / "drivers.txt").write_text(stack.spark.driver_logs())
        for source in stack.spark.directory.glob("*.log"):
            shutil.copy(source, target)
        print(f"        logs: {target}", flush=True)


def batches(seed: int, numbers: list[int], together: int) -> Iterator[list[int]]:
    """The rounds in their order; one that touches only its own job takes the next such with it, ``together`` in all."""
    waiting = list(numbers)
    while waiting:
        batch = waiting[:1]
        if draw(seed, batch[0])[0] in OWN:
            batch = [number for number in waiting if draw(seed, number)[0] in OWN][:together]
        yield batch
        waiting = [number for number in waiting if number not in batch]


def done(file: Path, seed: int) -> set[int]:
    """The rounds of a seed that a file has the results of."""
    if not file.exists():
        return set()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return {line["round"] for line in lines if line["seed"] == seed}


def summary(files: list[Path]) -> str:
    """The tally of result files, as a table in Markdown: by fault and broker."""
    rounds = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    brokers = sorted({line["broker"] for line in rounds})
    heads = [f"{broker}: ok | failed | missed" for broker in brokers]
    lines = [f"| fault | {' | '.join(heads)} |", f"|---|{'---:|' * 3 * len(brokers)}"]
    for fault in (*FAULTS, None):
        played = [line for line in rounds if fault in (line["fault"], None)]
        counts = Counter((line["broker"], line["outcome"]) for line in played)
        cells = [str(counts[broker, outcome] or "") for broker in brokers for outcome in ("ok", "FAILED", "missed")]
        if played:
            lines.append(f"| {fault or 'all'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Parse the command line, play the rounds, print the tally; 1 where a round failed."""
    parser = argparse.ArgumentParser(
        prog="python -m stack.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=None, help="of the order, moments and durations; else a random one")
    parser.add_argument("--rounds", type=int, default=len(FAULTS), help="how many; by default every fault once")
    parser.add_argument("--first", type=int, default=1, help="the number of the first round")
    parser.add_argument("--replay", type=int, help="play only this round")
    parser.add_argument("--fault", action="append", help="only faults whose name contains this; may be repeated")
    parser.add_argument("--minutes", type=float, help="begin no round after this time")
    parser.add_argument("--together", type=int, default=1, help="how many rounds to play at a time, where they can be")
    parser.add_argument("--away", type=float, default=75.0, help="seconds that the broker is away where that is long")
    parser.add_argument(
        "--results", type=Path, help="add a line of JSON for each round to this file, and leave out those it has"
    )
    parser.add_argument("--summary", type=Path, nargs="+", metavar="FILE", help="only print the tally of such files")
    parser.add_argument("--list", action="store_true", help="list the faults")
    options = parser.parse_args()
    if options.list:
        print("\n".join(FAULTS))
        return 0
    if options.summary:
        print(summary(options.summary))
        return 0
    seed = random.SystemRandom().randrange(10_000) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    numbers = [options.replay] if options.replay else list(range(options.first, options.first + options.rounds))
    if options.results and not options.replay:
        numbers = [n for n in numbers if n not in done(options.results, seed)]
    if options.fault:
        numbers = [n for n in numbers if any(part in draw(seed, n)[0] for part in options.fault)]

    def end(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    chaos = Chaos(seed, options.away, options.results)
    began = time.monotonic()
    try:
        for batch in batches(seed, numbers, options.together):
            if options.minutes and time.monotonic() - began > options.minutes * 60:
                print("time is up")
                break
            chaos.play(batch)
    except KeyboardInterrupt:
        print("stopped")
    finally:
        chaos.close()
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(chaos.tally.items()))
    print(f"seed {seed}: {counts or 'no round'}")
    for replay in chaos.failed:
        print(f"  replay: python -m stack.chaos {replay}")
    return 1 if chaos.failed or not chaos.tally["ok"] else 0


if __name__ == "__main__":
    sys.exit(main())
