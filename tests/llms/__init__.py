"""Tests of Penstock, on real sockets and real processes."""
