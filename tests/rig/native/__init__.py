"""One loopback service for every wire: a request's model names the scenario, its path the wire that answers it.

with upstream() as up:
    up.default = native_answer
    Claude(model="two tools", base_url=up.base_url, api_key="sk-x")
"""

from tests.rig.native.scenarios import SCENARIOS, Failure, Scenario
from tests.rig.native.speaking import WIRES, Wire, native_answer

__all__ = ["SCENARIOS", "WIRES", "Failure", "Scenario", "Wire", "native_answer"]
