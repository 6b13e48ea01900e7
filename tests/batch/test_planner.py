"""How items are cut into calls, and what a planner learns."""

from __future__ import annotations

from decimal import Decimal

import pytest

from penstock.batch.items import Item
from penstock.batch.planner import SPARE, Lesson, Planner
from penstock.errors import UsageError
from penstock.llms.prices import ModelInfo, Price


def some(count: int, group: str = "") -> list[Item]:
    return [Item(number, None, group) for number in range(count)]


def sizes(planner: Planner, items: list[Item], *, shared: int = 0, each: int = 0, most: int = 0) -> list[int]:
    calls = planner.calls(items, shared=shared, sizes={item.id: each for item in items}, most=most)
    return [len(call) for call in calls]


def test_row_d3_calls_hold_at_most_max_batch_size() -> None:
    assert sizes(Planner(4), some(10)) == [4, 4, 2]
    assert sizes(Planner(4), some(10), most=2) == [2] * 5
    with pytest.raises(UsageError, match="max_batch_size=0"):
        Planner(0)


def test_row_d7_no_call_holds_items_of_two_groups() -> None:
    items = [Item(number, None, "ab"[number % 2]) for number in range(7)]
    calls = [*Planner(3).calls(items)]
    assert [[item.id for item in call] for call in calls] == [[0, 2, 4], [6], [1, 3, 5]]


def test_row_d7_items_share_a_call_where_that_saves_a_tenth_of_the_prompts() -> None:
    assert sizes(Planner(10), some(3), shared=1000, each=5000) == [3]
    assert sizes(Planner(10), some(3), shared=1000, each=6000) == [1, 1, 1]


def test_row_d7_a_prompt_holds_what_the_model_takes() -> None:
    planner = Planner(10, max_prompt_tokens=1000)
    assert sizes(planner, some(5), shared=1000, each=1200) == [2, 2, 1]
    assert sizes(planner, some(2), shared=3000, each=9000) == [1, 1]


def test_row_d7_an_answer_holds_what_the_model_gives() -> None:
    planner = Planner(10, max_output_tokens=1064)
    assert sizes(planner, some(10)) == [5, 5]
    assert planner.room(1) == 364
    assert planner.room(1, roomy=True) == planner.room(9) == 1064


def test_limits_of_a_model_hold_where_no_others_were_given() -> None:
    price = Price(Decimal(1), Decimal(1))
    info = ModelInfo(price=price, context_window=8000, max_output_tokens=1000)
    planner = Planner(50)
    planner.within(info)
    assert planner.room(50) == 1000
    assert sizes(planner, some(4), shared=20_000, each=4000) == [2, 2]
    own = Planner(50, max_output_tokens=500, max_prompt_tokens=100_000)
    own.within(info)
    assert own.room(50) == 500
    assert sizes(own, some(4), shared=20_000, each=4000) == [2, 2]
    plain = Planner(2)
    plain.within(None)
    assert plain.room(2) == 664
    reasons = Planner(2)
    reasons.within(ModelInfo(capabilities=("reasoning",)))
    assert reasons.room(2) > 8000


def test_row_d7_the_size_grows_by_one_and_shrinks_by_half() -> None:
    planner = Planner(10)
    planner.learn(Lesson(10, 9))
    assert planner.size == 5
    planner.learn(Lesson(10, 7))  # side by side with the one before
    assert planner.size == 5
    planner.learn(Lesson(5, 0))
    assert planner.size == 2
    for size in (3, 4, 5):
        planner.learn(Lesson(size - 1, size - 1))
        assert planner.size == size
    planner.learn(Lesson(1, 0))
    planner.learn(Lesson(2, 2))
    assert planner.size == 5


def test_row_d7_the_size_follows_while_calls_are_made() -> None:
    planner = Planner(8)
    calls = planner.calls(some(20))
    assert len(next(calls)) == 8
    planner.learn(Lesson(8, 3))
    assert [len(call) for call in calls] == [4, 4, 4]


def test_row_d7_a_call_that_took_too_long_is_followed_by_smaller_ones() -> None:
    planner = Planner(10, latency_target_s=2.0)
    planner.learn(Lesson(10, 10, seconds=1.9, first_s=0.9))
    assert planner.size == 10
    planner.learn(Lesson(10, 10, seconds=3.0, first_s=0.3))
    assert planner.size == 5


def test_row_d7_no_more_items_share_a_call_than_can_arrive_in_time() -> None:
    planner = Planner(10, latency_target_s=2.0)
    planner.learn(Lesson(2, 2, seconds=1.0, first_s=0.5))
    assert sizes(planner, some(8)) == [4, 4]


def test_the_room_follows_what_items_take() -> None:
    planner = Planner()
    for _ in range(40):
        planner.learn(Lesson(10, 10, tokens=500))
    assert 50 <= planner.tokens_per_item < 51
    assert planner.room(10) == pytest.approx(1.5 * 500 + 64, abs=2)
    planner.learn(Lesson(10, 2, tokens=814, cut=True))
    assert planner.tokens_per_item == 407
    planner.learn(Lesson(10, 0, tokens=814, cut=True))
    assert planner.tokens_per_item == 1628
    planner.learn(Lesson(10, 0, tokens=10))
    assert planner.tokens_per_item == 1628


def test_the_limits_are_those_of_the_last_model_and_what_was_given_stays() -> None:
    planner = Planner(10, max_output_tokens=3000)
    planner.within(ModelInfo(context_window=4000, max_output_tokens=1000, capabilities=("reasoning",)))
    assert planner.room(100) == 3000
    assert planner.room(1) == 3000
    planner.within(None)
    assert planner.room(1) == 300 + SPARE
    planner = Planner(10)
    planner.within(ModelInfo(max_output_tokens=500))
    assert planner.room(10) == 500
    planner.within(ModelInfo(max_output_tokens=900))
    assert planner.room(10) == 900


@pytest.mark.parametrize(("most", "tokens"), [(0, 200.0), (10, 0.0)])
def test_sizes_that_let_nothing_through_are_refused(most: int, tokens: float) -> None:
    with pytest.raises(UsageError, match="nothing through"):
        Planner(most, tokens_per_item=tokens)
