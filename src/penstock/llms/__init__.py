"""LLM providers: each one class that turns its wire into the one set of messages and events."""
