"""Tests of penstock.tools."""
