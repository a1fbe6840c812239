"""A small simulated cancer hospital, written as a hospital would export it (docs/simulated-hospital.md)."""

from extractors.simulate.hospital import MADE, SimulationSummary, simulate

__all__ = ["MADE", "SimulationSummary", "simulate"]
