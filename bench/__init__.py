"""Benchmarks, roofline ceilings, reports and compile gates. Run from a source tree; never installed."""
