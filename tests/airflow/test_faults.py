"""A few of the faults of ``make chaos``, one of each kind, in every run of the tests. docs/chaos.md has them all."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from stack.chaos.__main__ import draw
from stack.chaos.faults import FAULTS
from stack.chaos.parts import Stack
from stack.chaos.round import Round, left_behind

SEED = 1


@pytest.fixture(scope="module")
def chaos_stack(tmp_path_factory):
    with ExitStack() as closing:
        yield Stack(tmp_path_factory.mktemp("chaos"), closing)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "fault",
    [
        "triggerer killed, just after the end",
        "worker killed submitting, the driver has ended",
        "broker killed, middle",
        "task marked failed at middle",
    ],
)
def test_the_task_ends_as_it_should(chaos_stack, fault):
    number = next(number for number in range(1, len(FAULTS) + 1) if draw(SEED, number)[0] == fault)
    played = Round(chaos_stack, number, draw(SEED, number)[1])
    FAULTS[fault](played)
    problems = played.problems()
    chaos_stack.heal()
    problems += left_behind(chaos_stack, [played], None)
    played.clean()
    assert not problems, "\n".join([*played.told, *problems, played.log()[-4000:]])


def test_every_fault_comes_once_a_lap_and_a_round_is_drawn_alike_again():
    lap = [draw(SEED, number)[0] for number in range(1, len(FAULTS) + 1)]
    assert sorted(lap) == sorted(FAULTS)
    assert [draw(SEED, number)[0] for number in range(1, len(FAULTS) + 1)] == lap
    assert draw(SEED, 5)[1].random() == draw(SEED, 5)[1].random() != draw(SEED, 6)[1].random()
    assert [draw(SEED + 1, number)[0] for number in range(1, len(FAULTS) + 1)] != lap
