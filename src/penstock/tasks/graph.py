"""The graph of tasks, pure: who needs whom, in which order they can run, and what is wrong with a plan."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from penstock.errors import CyclicPlan, UnknownName, UsageError

SHOWN = 20


@dataclass(frozen=True, slots=True)
class Graph:
    """Tasks by name: what each of them needs, who needs it, and an order in which no task comes before its needs.

    All three name every task. Dependencies and dependants stand as they were written, each once; the order is breadth
    first, and among equals as written. `graph_of` makes one.
    """

    dependencies: Mapping[str, Sequence[str]]
    dependants: Mapping[str, Sequence[str]]
    order: Sequence[str]

    def waits(self) -> dict[str, int]:
        """How many tasks each one waits for, in a dictionary of the caller's own."""
        return {task: len(needs) for task, needs in self.dependencies.items()}


def graph_of(dependencies: Mapping[str, Iterable[str]]) -> Graph:
    """The graph of tasks and what each of them needs, in time linear in both.

    Raises `UnknownName` for a need that is no task, `CyclicPlan`, which shows the path, for a task that needs itself,
    directly or through others.
    """
    needed = {task: needs_of(task, needs, dependencies) for task, needs in dependencies.items()}
    dependants: dict[str, list[str]] = {task: [] for task in needed}
    for task, needs in needed.items():
        for need in needs:
            dependants[need].append(task)
    waits = {task: len(needs) for task, needs in needed.items()}
    order = [task for task, count in waits.items() if not count]
    for task in order:  # which grows meanwhile
        for dependant in dependants[task]:
            waits[dependant] -= 1
            if not waits[dependant]:
                order.append(dependant)
    if len(order) < len(needed):
        raise _cyclic(_circle(needed, waits))
    return Graph(needed, dependants, order)


def needs_of(task: str, dependencies: Iterable[str], known: Container[str]) -> tuple[str, ...]:
    """What a task needs, each once, as written; raises `UnknownName` or, for the task itself, `CyclicPlan`."""
    needs = tuple(dict.fromkeys(dependencies))
    for need in needs:
        if need == task:
            raise _cyclic([task])
        if need not in known:
            raise UnknownName(f"task {task!r} needs {need!r}, which is no task: add it first, or correct the name")
    return needs


class Draft:
    """A graph in the making: every change is checked at once, at the price of what it touches, or changes nothing."""

    def __init__(self, graph: Graph | None = None) -> None:
        self._needs: dict[str, tuple[str, ...]] = {}
        self._dependants: dict[str, dict[str, None]] = {}
        if graph is not None:
            self._needs = {task: tuple(needs) for task, needs in graph.dependencies.items()}
            self._dependants = {task: dict.fromkeys(others) for task, others in graph.dependants.items()}

    def add(self, task: str, dependencies: Iterable[str] = ()) -> None:
        """Add a task; raises `UsageError` when the name is taken, `UnknownName`, or `CyclicPlan` if it needs itself.

        Nobody can need a task before it is there, so that a new one closes no circle.
        """
        if task in self._needs:
            raise UsageError(f"there is a task {task!r} already: choose another name")
        self._enter(task, needs_of(task, dependencies, self._needs))

    def add_all(self, added: Sequence[tuple[str, Iterable[str]]]) -> None:
        """Add tasks that may need each other, in any order, or none of them; raises what `add` raises."""
        tasks: dict[str, Iterable[str]] = {}
        for task, needs in added:
            if task in self._needs or task in tasks:
                raise UsageError(f"there is a task {task!r} already: choose another name")
            tasks[task] = needs
        known = {*self._needs, *tasks} if len(tasks) > 1 else self._needs
        needed = {task: needs_of(task, needs, known) for task, needs in tasks.items()}
        order = graph_of({task: [need for need in needs if need in tasks] for task, needs in needed.items()}).order
        for task in order:
            self._enter(task, needed[task])

    def _enter(self, task: str, needs: tuple[str, ...]) -> None:
        self._needs[task], self._dependants[task] = needs, {}
        for need in needs:
            self._dependants[need][task] = None

    def change(self, task: str, dependencies: Iterable[str]) -> None:
        """Give a task other dependencies; raises `UnknownName`, or `CyclicPlan`, which shows the path."""
        self._known(task)
        needs = needs_of(task, dependencies, self._needs)
        if (path := self._path(needs, task)) is not None:
            raise _cyclic([task, *path[:-1]])
        for need in self._needs[task]:
            del self._dependants[need][task]
        self._needs[task] = needs
        for need in needs:
            self._dependants[need][task] = None

    def remove(self, task: str) -> None:
        """Take a task out; raises `UnknownName`, or `UsageError` while others need it."""
        self._known(task)
        if others := self._dependants[task]:
            raise UsageError(f"task {task!r} is needed by {_some(others, ', ')}: remove or change those first")
        for need in self._needs[task]:
            del self._dependants[need][task]
        del self._needs[task], self._dependants[task]

    def graph(self) -> Graph:
        """The graph as it stands."""
        return graph_of(self._needs)

    def _known(self, task: str) -> None:
        if task not in self._needs:
            raise UnknownName(f"there is no task {task!r}: known are {_some(self._needs, ', ') or 'none'}")

    def _path(self, starts: Iterable[str], goal: str) -> list[str] | None:
        """A path along dependencies from one of the starts to the goal, if there is one."""
        came: dict[str, str | None] = dict.fromkeys(starts)
        front = [*came]
        for at in front:  # which grows meanwhile
            if at == goal:
                path, step = [at], came[at]
                while step is not None:
                    path.append(step)
                    step = came[step]
                return path[::-1]
            for need in self._needs[at]:
                if need not in came:
                    came[need] = at
                    front.append(need)
        return None


def _circle(needed: Mapping[str, Sequence[str]], waits: Mapping[str, int]) -> list[str]:
    """One circle among the tasks that still wait, from its task that was written first; each needs the next."""
    at = next(task for task, count in waits.items() if count)
    seen: dict[str, int] = {}
    while at not in seen:  # who waits in vain needs another one that does
        seen[at] = len(seen)
        at = next(need for need in needed[at] if waits[need])
    circle = [*seen][seen[at] :]
    members = {*circle}
    first = circle.index(next(task for task in needed if task in members))
    return circle[first:] + circle[:first]


def _cyclic(circle: Sequence[str]) -> CyclicPlan:
    shown = path_of(circle)
    return CyclicPlan(
        f"tasks need each other in a circle: {shown} (each needs the next); take one need out", path=circle
    )


def near(name: str, known: Iterable[str]) -> str:
    """What to write in place of a name that is not known."""
    names = sorted(known)
    found = get_close_matches(name, names, 1, 0.6)
    return f"did you mean {found[0]!r}?" if found else f"known are {_some(map(repr, names), ', ') or 'none'}"


def path_of(circle: Sequence[str]) -> str:
    """A circle in words, its first name at the end again."""
    return _some([*circle, circle[0]], " -> ")


def _some(names: Iterable[str], separator: str) -> str:
    """The names in a row; of very many the first, and how many more there are before the last."""
    listed = [*names]
    if len(listed) > SHOWN:
        listed[SHOWN - 1 : -1] = [f"({len(listed) - SHOWN} more)"]
    return separator.join(listed)
