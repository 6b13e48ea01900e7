"""Random plans for the tests of the graph and of the scheduler."""

from __future__ import annotations

from hypothesis import strategies as st

Plan = dict[str, list[str]]


@st.composite
def plans(draw: st.DrawFn, most: int = 10) -> Plan:
    """A plan without circles, its tasks written in any order."""
    count = draw(st.integers(1, most))
    names = [f"t{number}" for number in range(count)]
    needs = {
        name: draw(st.lists(st.sampled_from(names[:number]), max_size=3)) if number else []
        for number, name in enumerate(names)
    }
    return {name: needs[name] for name in draw(st.permutations(names))}


@st.composite
def any_plans(draw: st.DrawFn, most: int = 8) -> Plan:
    """A plan that may lead in circles."""
    names = [f"t{number}" for number in range(draw(st.integers(1, most)))]
    return {name: draw(st.lists(st.sampled_from(names), max_size=2)) for name in names}


def chain(length: int) -> Plan:
    """Each task needs the one before it."""
    return {f"t{number}": [f"t{number - 1}"] if number else [] for number in range(length)}
