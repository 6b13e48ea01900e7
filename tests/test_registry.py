"""Names to objects: found late, in other packages too, and with an error that says what to do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from penstock.errors import MissingExtra, PenstockError, UnknownName
from penstock.llms.base import BaseLlm
from penstock.llms.demo import Demo
from penstock.registry import Registry

GROUP = "penstock.test"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed package that offers entry points; its module counts how often it is imported."""
    (tmp_path / "penstock_shop.py").write_text("class Till:\n    pass\n")
    (tmp_path / "penstock_shop_paid.py").write_text("import penstock_shop_money\n")
    metadata = tmp_path / "penstock_shop-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: penstock-shop\nVersion: 1.0\n")
    points = ("Till = penstock_shop:Till", "paid = penstock_shop_paid:Card [money]", "gone = penstock_shop_gone:Gone")
    (metadata / "entry_points.txt").write_text(f"[{GROUP}]\n" + "\n".join(points) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "penstock_shop", raising=False)
    return "penstock_shop"


def test_a_name_is_found_whatever_its_case() -> None:
    llms = Registry[type[BaseLlm]]("llm")
    llms.register(" Demo ", Demo)
    assert llms.get("DEMO") is llms.get("demo ") is Demo
    assert llms.names() == ["demo"]


def test_a_reference_is_imported_when_it_is_asked_for_and_not_before(shop: str) -> None:
    tills = Registry[type]("till")
    tills.register("big", f"{shop}:Till")
    assert tills.names() == ["big"]
    assert shop not in sys.modules
    till = tills.get("big")
    assert till is sys.modules[shop].Till
    assert tills.get("big") is till


def test_installed_packages_offer_names_that_are_imported_late(shop: str) -> None:
    tills = Registry[type]("till", group=GROUP)
    assert tills.names() == ["gone", "paid", "till"]
    assert shop not in sys.modules
    assert tills.get("TILL") is sys.modules[shop].Till


def test_what_is_registered_wins_over_what_is_offered(shop: str) -> None:
    tills = Registry[type]("till", group=GROUP)
    tills.register("till", int)
    assert tills.get("till") is int
    assert shop not in sys.modules


def test_what_is_offered_elsewhere_is_not_found_without_its_group(shop: str) -> None:
    with pytest.raises(UnknownName, match="known are none"):
        Registry[type]("till").get("till")


def test_an_unknown_name_lists_the_known_ones_and_is_a_value_error(shop: str) -> None:
    tills = Registry[type]("till", group=GROUP)
    tills.register("own", int)
    with pytest.raises(ValueError, match="no till 'Tlil'; known are gone, own, paid, till") as caught:
        tills.get("Tlil")
    assert isinstance(caught.value, UnknownName)
    assert isinstance(caught.value, PenstockError)


@pytest.mark.parametrize("first", [int, "builtins:int"])
@pytest.mark.parametrize("second", [str, "builtins:str"])
def test_a_taken_name_is_replaced_only_when_asked(first: type | str, second: type | str) -> None:
    kinds = Registry[type]("kind")
    kinds.register("a", first)
    with pytest.raises(ValueError, match="the kind 'A' is registered already: pass replace=True"):
        kinds.register("A", second)
    assert kinds.get("a") is int
    kinds.register("A", second, replace=True)
    assert kinds.get("a") is str


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="the name of a kind must not be empty"):
        Registry[type]("kind").register(name, int)


def test_a_missing_package_is_an_error_with_the_command(shop: str) -> None:
    own, offered = Registry[type]("till"), Registry[type]("till", group=GROUP)
    own.register("paid", "penstock_shop_paid:Card [shop]")
    own.register("plain", "penstock_shop_paid:Card")
    with pytest.raises(MissingExtra, match=r"needs the package 'penstock_shop_money': pip install 'penstock\[shop\]'"):
        own.get("paid")
    with pytest.raises(MissingExtra, match=r"'plain' needs .*: pip install penstock_shop_money$"):
        own.get("plain")
    with pytest.raises(MissingExtra, match=r"pip install 'penstock-shop\[money\]'"):
        offered.get("paid")


def test_a_slip_in_a_reference_is_no_missing_package() -> None:
    llms = Registry[type]("llm")
    llms.register("slip", "penstock.llms.dmeo:Demo")
    llms.register("wrong", "penstock.llms.demo:Dmeo")
    with pytest.raises(ModuleNotFoundError, match="dmeo"):
        llms.get("slip")
    with pytest.raises(AttributeError, match="Dmeo"):
        llms.get("wrong")
