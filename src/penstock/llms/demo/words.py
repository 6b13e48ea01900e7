"""Words, names, numbers and sums found in an English prompt, for the demo model."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

Operation: TypeAlias = Callable[[Fraction, Fraction], Fraction]

STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        a about actually all also am an and any are as at be been but by can could did do does for from get give go had
        has have he hello help her hey hi him his how i if in into is it its just know let like make may me much my need
        no not now of on only or our out please s say she should show so some t tell than thank thanks that the their
        them then there these they this those to today tomorrow tool up us use very want was we were what when where
        which who whom why will with would you your
        """,
    )
)
_SMALL_NUMBERS = re.findall(r"\w+", "zero one two three four five six seven eight nine ten eleven twelve")
_SMALL = {number: value for value, number in enumerate(_SMALL_NUMBERS)}
_SMALL_WORD = r"\b(?:" + "|".join(_SMALL) + r")\b"
_NUMBER = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|" + _SMALL_WORD, re.IGNORECASE)
_FROM = re.compile(r"\b(?:subtract|take)\s+(\S+)\s+(?:away\s+)?from\s+(\S+)", re.IGNORECASE)
_SPOKEN = [
    (re.compile(r"\bplus\b"), "+"),
    (re.compile(r"\bminus\b"), "-"),
    (re.compile(r"\b(?:times|multiplied by)\b|\u00d7"), "*"),
    (re.compile(r"(?<=\d)\s*x\s*(?=\d)"), "*"),
    (re.compile(r"\bdivided by\b|\bover\b(?=\s*\d)|\u00f7"), "/"),
    (re.compile(r"\bto the power of\b|\^"), "**"),
    (re.compile(r"(\d+(?:\.\d+)?)\s*(?:%|percent)\s+of\s+"), r"\1/100*"),
]
_PAIRED = {
    "add": "+",
    "sum": "+",
    "total": "+",
    "multiply": "*",
    "product": "*",
    "divide": "/",
    "subtract": "-",
    "difference": "-",
}
_PAIR = re.compile(r"\b(" + "|".join(_PAIRED) + r")\b([^?!;\n]*)")
_NOT_A_SUM = re.compile(r"\d+-\d+-\d+|\d+/\d+/\d+|\d{3,}-\d{3,}")
_SUM = re.compile(r"[-(]*\d[\d.]*\)*(?:\s*(?:\*\*|[-+*/])\s*[-(]*\d[\d.]*\)*)+")
_OPERATIONS: dict[type[ast.operator], tuple[str, Operation]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", lambda one, other: one / other),
}
_QUOTE = re.compile(r"[\"“]([^\"”]+)[\"”]|(?<!\w)'([^']+)'(?!\w)")
MOST_LETTERS = 100
LARGEST = 10**300


@dataclass(frozen=True, slots=True)
class Calculation:
    """A sum found in a prompt: its expression, its operators, and its value; None when it has none."""

    expression: str
    operators: frozenset[str]
    value: Fraction | None

    @property
    def text(self) -> str:
        """The value as people write it."""
        return "not defined" if self.value is None else plain(self.value)


def plain(number: Fraction) -> str:
    """A number in digits: whole ones exactly, others to ten places."""
    return str(number.numerator) if number.denominator == 1 else f"{float(number):.10g}"


def words(text: str) -> list[str]:
    """The words of a text in lower case; names in snake or camel case fall into their parts."""
    return re.findall(r"[a-z]+|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).lower())


def key_words(text: str) -> list[str]:
    """The words that carry meaning, as they are written, each once."""
    found = re.findall(r"[^\W_](?:[\w'-]*\w)?", text)
    return list(dict.fromkeys(word for word in found if word.lower().split("'")[0] not in STOP_WORDS))


def names(text: str) -> list[str]:
    """Runs of capitalised words that do not begin a sentence: cities, people."""
    found = re.finditer(r"\b[A-Z][\w-]+(?:[ ][A-Z][\w-]+)*", text)
    return [
        name[0] for name in found if not re.search(r"(?:^|[.!?:\n])\s*$", text[max(0, name.start() - 3) : name.start()])
    ]


def quotes(text: str) -> list[str]:
    """What stands between quotation marks."""
    return [double or single for double, single in _QUOTE.findall(text)]


def numbers(text: str) -> list[int | float]:
    """The numbers of a text in order, small ones in words too; "subtract 3 from 10" gives 10 first."""
    text = _FROM.sub(r"\2 \1", text)
    found = (_SMALL.get(number.lower(), number) for number in _NUMBER.findall(text[:10_000]))
    digits = (str(number).replace(",", "")[:300] for number in found)
    return [float(number) if "." in number else int(number) for number in digits]


def calculation(text: str) -> Calculation | None:
    """The first sum a text asks for, in digits or in words; None when there is none."""
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text[:2_000].lower())
    text = re.sub(_SMALL_WORD, lambda word: str(_SMALL[word[0]]), text)
    for spoken, sign in _SPOKEN:
        text = spoken.sub(sign, text)
    if found := _SUM.search(_NOT_A_SUM.sub("", text)):
        return _evaluated(found[0])
    pair = _PAIR.search(text)
    if pair is None or len(given := [plain(Fraction(str(number))) for number in numbers(pair[0])]) < 2:
        return None
    return _evaluated(f" {_PAIRED[pair[1]]} ".join(given))


def _evaluated(expression: str) -> Calculation | None:
    expression = _balanced(expression.strip().rstrip("."))
    if len(expression) > MOST_LETTERS:
        return None
    signs: set[str] = set()
    try:
        value = _value(ast.parse(expression, mode="eval").body, signs)
    except (SyntaxError, ValueError, OverflowError):
        return None
    except ZeroDivisionError:
        value = None
    return None if value is not None and abs(value) > LARGEST else Calculation(expression, frozenset(signs), value)


def _balanced(expression: str) -> str:
    spare = expression.count("(") - expression.count(")")
    return (
        expression.replace("(", "", spare)
        if spare > 0
        else expression[: len(expression) + spare if spare < 0 else None]
    )


def _value(node: ast.expr, signs: set[str]) -> Fraction:
    """The exact value of a sum; adds its operators to `signs`. Raises `ValueError` for anything else."""
    match node:
        case ast.Constant(value=int() | float() as number):
            return Fraction(str(number))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, signs)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            signs.add("**")
            base, exponent = _value(left, signs), _value(right, signs)
            if abs(exponent) > 64 or exponent.denominator != 1 or abs(base) > 10**6:
                raise ValueError("the power is too large")
            return base ** int(exponent)
        case ast.BinOp(left=left, op=op, right=right):
            sign, operation = _OPERATIONS[type(op)]
            signs.add(sign)
            return operation(_value(left, signs), _value(right, signs))
        case _:
            raise ValueError("not a sum")
