"""Tests of the pages for readers."""
