"""Agents, the tasks they are given, projects of tasks that need each other, and the engines that run them."""
