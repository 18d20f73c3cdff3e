"""Kubernetes quantities (`500m`, `16Gi`) as exact numbers."""

from __future__ import annotations

from fractions import Fraction

MIB = 2**20
GIB = 2**30
LARGEST = 2**63 - 1
"""The largest number that Kubernetes can represent."""

_SUFFIXES = {
    "": Fraction(1),
    "m": Fraction(1, 1000),
    "k": Fraction(10**3),
    "M": Fraction(10**6),
    "G": Fraction(10**9),
    "T": Fraction(10**12),
    "P": Fraction(10**15),
    "Ki": Fraction(2**10),
    "Mi": Fraction(2**20),
    "Gi": Fraction(2**30),
    "Ti": Fraction(2**40),
    "Pi": Fraction(2**50),
}


def parse(quantity: str) -> Fraction:
    """Return the value in bytes, cores or units. Raises ValueError for an invalid quantity."""
    number = quantity.rstrip("mkMGTPi")
    suffix = quantity[len(number) :]
    if suffix not in _SUFFIXES or not number:
        raise ValueError(f"{quantity!r} is not a Kubernetes quantity; use for example 500m, 4 or 16Gi")
    return Fraction(number) * _SUFFIXES[suffix]


def mebibytes(size: int) -> str:
    """Format bytes, rounded up to MiB, in the larger unit that needs no fraction: `2Gi`, `1536Mi`."""
    mib = -(-size // MIB)
    return f"{mib // 1024}Gi" if mib % 1024 == 0 else f"{mib}Mi"
