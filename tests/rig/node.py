"""Calls an OpenAI-compatible server with the official Node SDK, through `node_sdk/stream.mjs`."""

from __future__ import annotations

import json
import subprocess
from functools import cached_property
from pathlib import Path
from typing import Literal

from tests.rig.wire import JsonObject

FOLDER = Path(__file__).with_name("node_sdk")


class NodeSdk:
    """The SDK as installed in its folder, in one Node process for all calls."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder

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
        asked = {"mode": mode, "request": request, "baseURL": base_url, "apiKey": key}
        assert self._node.stdin is not None
        assert self._node.stdout is not None
        self._node.stdin.write(json.dumps(asked) + "\n")
        self._node.stdin.flush()
        answer: JsonObject = json.loads(self._node.stdout.readline())
        return answer

    def close(self) -> None:
        """Ends the process, if there is one."""
        if "_node" in vars(self):
            self._node.communicate(timeout=10)

    @cached_property
    def _node(self) -> subprocess.Popen[str]:
        command = ["node", str(self.folder / "stream.mjs")]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
