"""The OpenAI API in front of executors, as an ASGI application."""
