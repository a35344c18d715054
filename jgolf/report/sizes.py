"""What is in a run's artifact, for the report."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jgolf.artifact import container, size
from jgolf.history import History


@dataclass(frozen=True)
class ArtifactContents:
    """What is in an artifact.

    Attributes:
      report: bytes by kind of tensor.
      level_counts: integer form → how often each level occurs, from −2^(bits − 1) to 2^(bits − 1) − 1.
    """

    report: size.SizeReport
    level_counts: dict[str, np.ndarray]

    def level_entropy_bits(self, form: str) -> float:
        """Bits a level of that form takes at least, were they independent."""
        share = self.level_counts[form] / self.level_counts[form].sum()
        share = share[share > 0]
        return float(-(share * np.log2(share)).sum())


def read_contents(run: History) -> ArtifactContents | None:
    """What is in the artifact of a run, None where it has none.

    Raises:
      ArtifactError: the artifact is damaged.
    """
    if run.artifact is None:
        return None
    stored, _ = container.read(run.artifact)
    report = size.measure(stored, run.artifact.stat().st_size, run.result.get("code_bytes", 0))
    counts: dict[str, np.ndarray] = {}
    for tensor in stored.values():
        if tensor.bits is not None:
            half = 2 ** (tensor.bits - 1)
            levels = np.bincount(tensor.values.ravel().astype(np.int64) + half, minlength=2 * half)
            counts[tensor.form] = counts.get(tensor.form, 0) + levels
    return ArtifactContents(report, counts)
