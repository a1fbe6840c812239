"""A large simulated hospital: the tables of the small one, drawn by columns (docs/simulated-hospital.md)."""

from extractors.simulate.large.hospital import LargeSummary, simulate_large
from extractors.simulate.large.nights import NIGHTS

__all__ = ["NIGHTS", "LargeSummary", "simulate_large"]
