"""`penstock.yaml`: read and checked, then joined to executors that are found by a model's name."""

from penstock.config.catalog import Catalog
from penstock.config.files import load, schema
from penstock.config.listing import Model
from penstock.config.settings import Settings

__all__ = ["Catalog", "Model", "Settings", "load", "schema"]
