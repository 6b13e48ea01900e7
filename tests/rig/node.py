"""Calls an OpenAI-compatible server with the official Node SDK, through `node_sdk/stream.mjs`."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.rig.wire import JsonObject

FOLDER = Path(__file__).with_name("node_sdk")


@dataclass(frozen=True, slots=True)
class NodeSdk:
    """The SDK as installed in its folder."""

    folder: Path = FOLDER

    def problem(self) -> str:
        """Why it cannot be used, or an empty text."""
        if (self.folder / "node_modules" / "openai").is_dir():
            return ""
        return "the Node SDK is not installed; run `npm install --prefix tests/rig/node_sdk`"

    def call(
        self, mode: Literal["stream", "create"], request: JsonObject, *, base_url: str, key: str = "none"
    ) -> JsonObject:
        """Sends one chat request and returns `text, finish_reason, usage, tool_calls, error`.

        `stream` uses the SDK's stream helper, `create` a plain call; an error has `type, status, code, message`.
        """
        variables = {**os.environ, "OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": key}
        command = ["node", str(self.folder / "stream.mjs"), mode, json.dumps(request)]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=True)
        answer: JsonObject = json.loads(done.stdout)
        return answer
