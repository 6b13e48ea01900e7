"""Penstock as its users run it: a process of its own, called by the official SDKs, in front of a real LLM engine."""
