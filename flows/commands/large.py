"""`timeloom simulate --large`: a hospital of any size, in words."""

from pathlib import Path

from warehouse.progress import Progress


def simulate_to(
    out: Path, subjects: int, seed: int, imaging_share: float, night: str, compressed: bool, progress: Progress
) -> str:
    """Writes it, and says what it holds."""
    from extractors.simulate.large import simulate_large
    from flows.runs.paths import local_folder

    summary = simulate_large(
        local_folder(out, "OUT"),
        subjects=subjects,
        seed=seed,
        imaging_share=imaging_share,
        compressed=compressed,
        night=night,
        progress=progress,
    )
    parts = [f"{number} {table}" for table, number in summary.rows.items()]
    parts += [f"{number} vectors of {name}" for name, number in summary.images.items()]
    changed = ", ".join(f"{number} {change}" for change, number in summary.changed.items())
    return f"wrote {out}: {', '.join(parts)}" + (f"; patients changed: {changed}" if changed else "")
