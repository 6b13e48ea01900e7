"""Chat executors: from a conversation to the next answer."""
