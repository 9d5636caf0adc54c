"""Metrics computed batch by batch: constant memory, float64 sums, on any device, in nats.

Each metric has `update` (add a batch), `merge` (add another accumulator) and `compute` (the result so far).
"""

from __future__ import annotations

from pyrostoch.metrics.accuracy import Accuracy
from pyrostoch.metrics.brier import Brier
from pyrostoch.metrics.calibration import Calibration, Reliability
from pyrostoch.metrics.classification import Classification, ClassificationScores
from pyrostoch.metrics.detection import AveragePrecision, DetectionScores
from pyrostoch.metrics.images import psnr, ssim
from pyrostoch.metrics.mean_iou import MeanIoU, SegmentationScores
from pyrostoch.metrics.nll import NegativeLogLikelihood
from pyrostoch.metrics.overlaps import box_overlaps, mask_overlaps
from pyrostoch.metrics.regression import Regression, RegressionScores
from pyrostoch.metrics.running import Estimate, RunningMean
from pyrostoch.metrics.tracking import Tracking, TrackingScores
from pyrostoch.metrics.uncertainty import EntropyDecomposition, MomentAverage, PredictiveAverage, decompose_entropy

__all__ = [
    "Accuracy",
    "AveragePrecision",
    "Brier",
    "Calibration",
    "Classification",
    "ClassificationScores",
    "DetectionScores",
    "EntropyDecomposition",
    "Estimate",
    "MeanIoU",
    "MomentAverage",
    "NegativeLogLikelihood",
    "PredictiveAverage",
    "Regression",
    "RegressionScores",
    "Reliability",
    "RunningMean",
    "SegmentationScores",
    "Tracking",
    "TrackingScores",
    "box_overlaps",
    "decompose_entropy",
    "mask_overlaps",
    "psnr",
    "ssim",
]
