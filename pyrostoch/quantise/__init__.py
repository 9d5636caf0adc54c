"""Numbers of few values: gradients on a grid."""

from pyrostoch.quantise.gradients import BinaryGradient, DiscreteGradient, KBitGradient, TernaryGradient, rounded

__all__ = ["BinaryGradient", "DiscreteGradient", "KBitGradient", "TernaryGradient", "rounded"]
