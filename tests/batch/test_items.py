"""Items: their order, their keys, and what is no item."""

from __future__ import annotations

from random import Random
from time import perf_counter
from typing import Any, cast

import pytest
from pydantic import BaseModel

from penstock.batch.items import BatchRequest, Item, ItemId, items_of, keys_of
from penstock.batch.prompt import line
from penstock.errors import UsageError


def keys(*ids: ItemId, text: bool = False) -> list[Any]:
    return [*keys_of([Item(one, None) for one in ids], text=text)]


def test_row_d3_integers_come_by_size_before_strings() -> None:
    ids: list[ItemId] = [-3, 0, 2, 10, "10", "2", "a", "b"]
    given = [Item(one, None) for one in ids]
    Random(4).shuffle(given)
    assert [item.id for item in BatchRequest.of(given).items] == ids
    assert len(BatchRequest.of(given)) == 8


@pytest.mark.parametrize("bad", ["", None, True, 1.0, ("a",)])
def test_what_is_no_id_is_refused(bad: Any) -> None:
    with pytest.raises(UsageError, match="names no item"):
        BatchRequest.of([Item(bad, None)])


def test_row_d3_an_id_twice_is_refused_but_a_number_is_not_its_text() -> None:
    with pytest.raises(UsageError, match="two items have the id 'a'"):
        BatchRequest.of([Item("a", 1), Item("b", 1), Item("a", 2)])
    assert len(BatchRequest.of([Item(1, None), Item("1", None)])) == 2


def test_row_d3_keys_are_the_ids_that_a_model_can_repeat() -> None:
    assert keys(3, -1, "goblin-7", "a.b_c", "42") == [3, -1, "goblin-7", "a.b_c", "42"]


@pytest.mark.parametrize("odd", ["an id", "ü", "a" * 33, "-x", 'a"b', "</items>", "x\ny", 2**53, -(2**70)])
def test_row_d3_other_ids_have_opaque_keys_that_say_no_position(odd: ItemId) -> None:
    (key,) = keys(odd)
    assert key != odd
    assert str(key).startswith("k")
    assert len(str(key)) == 9
    assert keys(1, 2, odd, "z")[2] == key


def test_text_that_reads_like_the_number_of_another_has_an_opaque_key() -> None:
    one, two = keys(1, "1")
    assert one == 1
    assert two.startswith("k")
    assert keys(1, "1", text=True) == ["1", two]


def test_an_opaque_key_is_never_that_of_another() -> None:
    (opaque,) = keys("an id")
    found = keys("an id", opaque)
    assert found[1] == opaque
    assert len(found[0]) == 10
    assert len({*found}) == 2


def test_items_are_given_as_such_as_objects_or_as_pairs() -> None:
    item = Item(1, "x", "red")
    assert [*items_of([item, {"id": 2, "hp": 3}, (4, [5])])] == [item, Item(2, {"hp": 3}), Item(4, [5])]


class Seen(BaseModel):
    """What an agent sees, of pydantic."""

    id: int
    hp: int
    group: str = ""


def test_a_group_of_an_object_is_its_own_and_no_data() -> None:
    given = [{"id": 1, "group": "red", "hp": 3}, Seen(id=2, hp=4, group="blue"), {"id": 3, "data": [5]}]
    assert BatchRequest.of(given).items == (Item(1, {"hp": 3}, "red"), Item(2, {"hp": 4}, "blue"), Item(3, [5]))
    with pytest.raises(UsageError, match="group 5 of the item 1 is no text"):
        BatchRequest.of([{"id": 1, "group": 5}])


def test_a_request_takes_what_a_batch_takes() -> None:
    assert BatchRequest.of([(2, "b"), (1, "a")]).items == (Item(1, "a"), Item(2, "b"))
    with pytest.raises(UsageError, match="'a' is no item"):
        BatchRequest.of("ab")
    with pytest.raises(UsageError, match="5 holds no items"):
        BatchRequest.of(cast("Any", 5))


def test_models_of_pydantic_are_data_also_within_other_data() -> None:
    assert '"data":{"seen":[{"group":"","hp":4,"id":2}]}' in line(1, Item(1, {"seen": [Seen(id=2, hp=4)]}))
    with pytest.raises(UsageError, match="the data of the item 1 cannot be written as JSON: object is no JSON"):
        line(1, Item(1, object()))


def test_many_opaque_keys_are_made_in_time_that_grows_with_their_number() -> None:
    items = [Item(f"agent number {number}, far away", None) for number in range(20_000)]
    began = perf_counter()
    assert len(keys_of(items)) == 20_000
    assert perf_counter() - began < 1.0  # it takes 0.1 s, and 4 s where each is compared with all
