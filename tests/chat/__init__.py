"""Tests of what chats."""
