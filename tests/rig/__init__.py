"""The real parts that the tests stand on: an LLM engine, an upstream that misbehaves, a span receiver, servers."""
